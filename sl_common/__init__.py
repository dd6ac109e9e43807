"""The pure core of Cutlayer: split learning without a network, a clock, a thread or a file."""

__version__ = "0.1.0"
