"""The command line, `loratree`."""
