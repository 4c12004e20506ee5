"""The two ways to put a chain on a live model, merge and stack, and to take it off again without a trace."""
