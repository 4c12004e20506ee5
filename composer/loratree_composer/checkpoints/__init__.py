"""A base's checkpoint, written with a chain's deltas merged in."""
