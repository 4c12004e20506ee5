"""Bytes, stored and found by their digest."""
