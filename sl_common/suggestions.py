"""The nearest known word to one that a person wrote: the one place that compares them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_COMPARED = 64  # characters of a word that are compared with known words


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `, did you mean 'x'?`, or nothing if no known word is close."""
    near = get_close_matches(str(word)[:_MAX_COMPARED], list(known), n=1, cutoff=cutoff)
    return f", did you mean {near[0]!r}?" if near else ""
