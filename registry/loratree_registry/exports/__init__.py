"""The export format, loratree/export/1: what a folder or a tar file holds, written and read in bounded memory."""
