"""A base's checkpoint, written again with deltas merged in."""
