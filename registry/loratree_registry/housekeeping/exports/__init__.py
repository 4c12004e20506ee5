"""Export and import of a subtree or of everything, in bounded memory."""
