"""Tables, transactions and SQL."""
