"""Folders on this machine and any Registry; knows no database and no HTTP."""
