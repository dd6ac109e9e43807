"""Checks that a message acknowledges the messages which it depends on. Pure.

Law: a peer that begins batch n + window must have acknowledged the reply to batch n, and an answer must acknowledge the
message that it answers. A peer that follows the protocol can therefore make this side keep a bounded number of
messages, and no more.
"""

from __future__ import annotations

from collections import deque

from sl_common.errors import WireError
from sl_common.messages.inference import Fetch, Lower, Offer, Query, Scores
from sl_common.messages.training import MOST_LATE, Begin, Done, Gradient, Late, Message, Ready, Smashed, Welcome

WORDS = (
    32  # unacknowledged messages allowed beside batches and replies: two for each of MOST_LATE waves, and a few more
)


class Causes:
    """Dependencies between the messages of one endpoint, on either side."""

    def __init__(self, window: int) -> None:
        """`window`: batches or queries of one client that may be unanswered at the same time."""
        self.window = window
        self.most = (MOST_LATE + 1) * window + WORDS  # messages of ours that may be unacknowledged
        # Step of a batch or query that we sent and that has no reply yet -> its number among our messages
        self._asked: dict[int, int] = {}
        self._replies: deque[tuple[int, int]] = (
            deque()
        )  # step of a batch or query that we answered, and the number of our reply
        self._word = (
            0  # number of our message that the peer's next control message answers: a Begin, a Done, an Offer, …
        )
        self._wave = (0, 0)  # round and wave of the last Begin

    def sent(self, message: Message, number: int) -> None:
        """Record a message of ours. Messages are counted from 1, however many frames they take."""
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

    def check(self, message: Message, acknowledged: int) -> None:
        """Check a message of the peer's that acknowledges so many of our messages.

        Raises WireError if it depends on a message that it does not acknowledge.
        """
        match message:
            case Smashed(step=step, round=r, wave=w) if (r, w) == self._wave:
                _check(f"batch {step}", acknowledged, self._word)
                self._begins(f"batch {step}", step, acknowledged)
            case Query(step=step):  # a client that knows the run from before may ask without waiting for the Offer
                self._begins(f"query {step}", step, acknowledged)
            case Gradient(step=step) | Scores(step=step):
                _check(f"the reply to {step}", acknowledged, self._asked.pop(step, 0))
            case Done(round=r, wave=w) if (r, w) == self._wave:
                _check("done", acknowledged, self._word)
            case Begin() | Ready() | Lower():
                _check(type(message).__name__.lower(), acknowledged, self._word)
                self._asked.clear()
            case Late():  # it may have crossed with our messages of that wave
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
