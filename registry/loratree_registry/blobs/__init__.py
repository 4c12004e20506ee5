"""Bytes, stored and read by their digest."""
