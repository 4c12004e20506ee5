"""The registry in this process: transactions begin and end here."""
