"""The messages that travel over HTTP, for the server and the client."""
