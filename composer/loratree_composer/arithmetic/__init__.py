"""Pure functions on tensors. The only library that they need is torch."""
