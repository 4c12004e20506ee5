"""The registry's use cases, one file each. A use case takes a connection and never commits."""
