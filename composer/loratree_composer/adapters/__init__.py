"""Versions, fetched, verified and read into memory."""
