"""The same training step over other people's systems, for `python -m benchmarks.peers`.

Each peer is a script of ours that calls its system's public API, runs in a virtual environment of its own, and is never imported by
anything but itself. It starts a real server process and real client processes on loopback and prints one JSON line.
"""
