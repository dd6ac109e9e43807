"""The client: private data, the lower segment, and one stream to the server."""
