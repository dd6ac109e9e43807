"""What both sides do to their machine: files, locks, text for terminals, pauses between retries, one HTTP server.

Law: the one folder of `sl_common` that may open files, sockets and threads. Shells import it; the core and the state machine never do.
"""
