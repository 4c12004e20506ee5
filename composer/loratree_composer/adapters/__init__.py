"""Adapters: published versions, fetched, verified and read into memory."""
