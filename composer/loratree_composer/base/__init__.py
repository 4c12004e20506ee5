"""What a base is, read from a checkpoint or from a live model."""
