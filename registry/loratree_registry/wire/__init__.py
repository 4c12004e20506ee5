"""What travels over HTTP, for the server and the client."""
