"""Access to the machine for both sides: files, locks, text for terminals, pauses between retries, one HTTP server.

Law: the only folder of `sl_common` that may open files and sockets or start threads. Shells import it; pure code never
does.
"""
