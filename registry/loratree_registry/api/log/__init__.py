"""What the server writes to stderr: a line for each request, and what goes wrong."""
