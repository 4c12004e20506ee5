"""What a composer keeps between uses, and what it loads before it is asked for."""
