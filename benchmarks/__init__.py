"""One file a claim; each prints a table, and `--json FILE` writes the same rows for programs."""
