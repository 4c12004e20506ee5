"""The registry in this process: transactions open and end here."""
