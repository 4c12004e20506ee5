"""The commands, one file per noun: a few lines over the library, with heavy imports inside the command."""
