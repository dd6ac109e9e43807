"""The server: the head, the coordinator, and one stream from each client."""
