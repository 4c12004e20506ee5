"""The HTTP service, over any Registry."""
