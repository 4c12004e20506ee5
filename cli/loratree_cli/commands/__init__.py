"""One file for each noun; a command is a few lines over the library, and imports what is heavy when it runs."""
