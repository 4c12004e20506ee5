"""Export and import of a subtree or of a whole registry, in bounded memory."""
