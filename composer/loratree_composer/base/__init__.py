"""Bases: their manifests and tensors, read from a checkpoint or from a live model."""
