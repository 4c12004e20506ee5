"""Pure functions of tensors; needs torch alone."""
