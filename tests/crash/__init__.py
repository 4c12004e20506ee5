"""The crash matrix: a process dies, or loses its store or database, at every step of every command that writes.

`python -m tests.crash` runs all of it and prints a table; `make test` runs a sample.
"""
