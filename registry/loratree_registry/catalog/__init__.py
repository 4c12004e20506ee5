"""The use cases, one each: they take a connection and never commit."""
