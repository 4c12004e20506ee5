"""Safetensors files and checkpoints, read without torch."""
