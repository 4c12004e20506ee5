"""A chain on a live model, and off again without a trace."""
