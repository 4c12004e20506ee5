"""Work between a folder on this machine and any Registry; it knows no database and no HTTP."""
