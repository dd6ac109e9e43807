"""Runs a client's program: yields its messages until it must wait, and takes the server's messages. Pure.

flow = Flow(participate(take_seat))
while True:
    for message in flow.run():      # runs until the client must wait
        send(message)
    if flow.ended:
        break
    flow.deliver(receive())
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from sl_common.client.orders import Expected, check_aligned, check_reply
from sl_common.client.program import AwaitServer, ClientProgram, TooLate, Window
from sl_common.errors import WireError
from sl_common.messages.training import (
    MOST_LATE,
    Aligned,
    Begin,
    Bye,
    Gradient,
    Late,
    Smashed,
    ToClient,
    ToServer,
    Welcome,
)
from sl_common.protocol import Await, AwaitAligned


class Flow:
    """Runs one client's program. Each batch gets one reply, matched by its step."""

    def __init__(self, program: ClientProgram) -> None:
        self._program = program
        self._op: ToServer | Await | AwaitAligned | AwaitServer | Window = next(program)
        self._window = 1
        self._words: deque[ToClient] = deque()
        self._under_way: dict[int, Expected] = {}  # step -> properties that the reply must match
        self._replies: dict[int, Gradient] = {}
        self._aligned: Aligned | None = None
        self._wave: tuple[int, int] | None = None  # round and wave of the last Begin that the program has taken
        self._late: set[tuple[int, int]] = set()  # waves that the server continued without this client
        self.ended: Bye | None = None

    def run(self) -> Iterator[ToServer]:
        """Yield the messages that the client can send before it must wait."""
        while self.ended is None:
            match self._op:
                case Await(ticket) if ticket in self._replies:
                    self._resume(self._replies.pop(ticket))
                case AwaitServer() if self._words:
                    word = self._words.popleft()
                    self._resume(word)
                    if isinstance(word, Begin):
                        self._wave = (word.round, word.wave)
                        self._apply_late()
                case AwaitAligned() if self._aligned is not None:
                    aligned, self._aligned = self._aligned, None
                    self._resume(aligned)
                case Await() | AwaitAligned() | AwaitServer():
                    return
                case Window(batches):
                    self._window = batches
                    self._resume(None)
                case Smashed() as batch:
                    if len(self._under_way) >= self._window:
                        return
                    self._under_way[batch.step] = Expected.of(batch)
                    yield batch
                    self._resume(batch.step)
                case message:
                    yield message
                    self._resume(None)

    def deliver(self, message: ToClient) -> None:
        """Process one message of the server's. Raises WireError if it is not allowed now."""
        match message:
            case Bye():
                self.ended = message
                self._program.close()
            case Gradient(step=step):
                if step not in self._under_way:
                    raise WireError(f"reply to batch {step}, which is not under way ({sorted(self._under_way)} are)")
                batch = self._under_way.pop(step)
                check_reply(message, batch)
                if batch.needs_grad:
                    self._replies[step] = message
            case Aligned(round=r, wave=w, weights=weights):
                if not isinstance(self._op, AwaitAligned) or set(weights) != {"aux"}:
                    raise WireError(
                        f"weights of {sorted(weights)} in round {r + 1}, wave {w + 1}, which this client did not await"
                    )
                check_aligned(message, self._wave)
                self._aligned = message
            case Late(round=r, wave=w):
                self._late.add((r, w))
                self._apply_late()
                self._check_room("late", len(self._late))
            case Welcome() | Begin():
                self._words.append(message)
                self._check_room(type(message).__name__.lower(), len(self._words))
            case _:
                raise WireError(f"{type(message).__name__} is no word of a run's")

    def _check_room(self, what: str, waiting: int) -> None:
        """Raise WireError if more messages wait than a client can be waves behind."""
        if waiting > MOST_LATE:
            raise WireError(f"{what}: {waiting} of them wait to be heeded, at most {MOST_LATE} may")

    def _apply_late(self) -> None:
        """End the current wave if the server continued it without this client.

        If the program has already sent its Done, that message crossed with the server's, and nothing is interrupted.
        """
        if self._wave not in self._late:
            return
        self._late.clear()
        if not isinstance(self._op, AwaitServer):
            self._op = self._program.throw(TooLate())
        self._under_way.clear()
        self._replies.clear()
        self._aligned = None

    def _resume(self, answer: Any) -> None:
        self._op = self._program.send(answer)
