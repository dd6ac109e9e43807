"""Limits on the entries and the text of a header, checked before anything is made of it."""

from __future__ import annotations

MAX_TENSORS = 1 << 14  # of one message
MAX_LIST = 1 << 10  # entries of any other list in a header
MAX_WORD = 64  # characters of a codec's name or a version, bytes of a codec's parameters
MAX_SENTENCE = 2000  # characters of a reason, which people read; the rest is cut off
MAX_RUN = 200  # characters of a run's name
MAX_SLOT = 512  # bytes of a tensor's header, of which the other checks let through no more than half
MAX_OTHERS = 4 * MAX_LIST + 64  # entries of a header that are not tensors: its lists, and the fields that it has once
