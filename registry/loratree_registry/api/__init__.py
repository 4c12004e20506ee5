"""The registry over HTTP. Importing this loads no framework: `app` and what it imports do."""
