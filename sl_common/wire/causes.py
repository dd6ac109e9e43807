"""Acknowledgements that a peer's message must carry, because it cannot have been said before ours was heard. Pure.

Law: whoever begins batch n + window without having acknowledged the reply to n breaks the protocol, and so does whoever answers what it
does not acknowledge. A peer that takes part can therefore make us keep a bounded number of messages, and no more.
"""

from __future__ import annotations

from collections import deque

from sl_common.errors import WireError
from sl_common.messages.inference import Fetch, Lower, Offer, Query, Scores
from sl_common.messages.training import MOST_LATE, Begin, Done, Gradient, Late, Message, Ready, Smashed, Welcome

WORDS = 32  # messages that may be unacknowledged beside batches and replies: two for each of those waves, and a few


class Causes:
    """Of one endpoint, on either side."""

    def __init__(self, window: int) -> None:
        """`window`: batches or queries of one client that may be under way."""
        self.window = window
        self.most = (MOST_LATE + 1) * window + WORDS  # messages of ours that may be unacknowledged
        self._asked: dict[
            int, int
        ] = {}  # batch or query of ours that has no reply yet -> its number among our messages
        self._replies: deque[tuple[int, int]] = deque()  # batch or query that we answered, and the answer's number
        self._word = 0  # number of what the peer's next word answers: a Begin, a Done, an Offer, …
        self._wave = (0, 0)  # round and wave of the last Begin

    def said(self, message: Message, number: int) -> None:
        """We said this; messages are counted from 1, however many frames they take."""
        match message:
            case Smashed(step=step) | Query(step=step):
                self._asked[step] = number
            case Gradient(step=step) | Scores(step=step):
                self._replies.append((step, number))
            case Begin(round=r, wave=w):
                self._wave, self._word = (r, w), number
                self._replies.clear()
            case Welcome() | Ready() | Done() | Offer() | Fetch() | Lower():
                self._word = number
            case _:
                pass

    def heard(self, message: Message, acknowledged: int) -> None:
        """The peer said this, and has so many of our messages. Raises WireError if it cannot have said so."""
        match message:
            case Smashed(step=step, round=r, wave=w) if (r, w) == self._wave:
                _check(f"batch {step}", acknowledged, self._word)
                self._begins(f"batch {step}", step, acknowledged)
            case Query(step=step):  # who knows the run from before may ask at once
                self._begins(f"query {step}", step, acknowledged)
            case Gradient(step=step) | Scores(step=step):
                _check(f"the reply to {step}", acknowledged, self._asked.pop(step, 0))
            case Done(round=r, wave=w) if (r, w) == self._wave:
                _check("done", acknowledged, self._word)
            case Begin() | Ready() | Lower():
                _check(type(message).__name__.lower(), acknowledged, self._word)
                self._asked.clear()
            case Late():  # it crossed with what was said of that wave
                self._asked.clear()
                self._word = 0
            case _:
                pass

    def _begins(self, what: str, step: int, acknowledged: int) -> None:
        while self._replies and self._replies[0][0] <= step - self.window:
            answered, number = self._replies.popleft()
            if acknowledged < number:
                raise WireError(
                    f"{what} begins though the reply to {answered} is not acknowledged: {acknowledged} messages are, "
                    f"the reply is number {number}; client.window = {self.window}"
                )


def _check(what: str, acknowledged: int, needed: int) -> None:
    if acknowledged < needed:
        raise WireError(f"{what} answers message {needed}, but acknowledges {acknowledged} messages")
