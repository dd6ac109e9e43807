"""A client's program as a generator, without a network: `flow.Flow` runs it, and a driver carries the messages."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from sl_common.client.orders import check_begin, check_welcome
from sl_common.client.seat import Seat
from sl_common.messages.training import ToServer, Welcome
from sl_common.protocol import Await, AwaitAligned


@dataclass(frozen=True, slots=True)
class AwaitServer:
    """Request for the server's next message that is not a reply to a batch."""


class TooLate(Exception):
    """The wave continued without this client. Thrown into its program."""


@dataclass(frozen=True, slots=True)
class Window:
    """Set how many batches may be unanswered at the same time."""

    batches: int


ClientProgram = Generator[ToServer | Await | AwaitAligned | AwaitServer | Window, Any, None]


def participate(take_seat: Callable[[Welcome], Seat]) -> ClientProgram:
    """Return the program of a client, from Welcome until the server sends Bye."""
    seat = take_seat(check_welcome((yield AwaitServer())))
    yield Window(seat.config.client.window)
    ready = seat.ready
    yield ready
    while True:
        begin = check_begin((yield AwaitServer()), seat.config, ready, seat.bank.parts)
        try:
            done = yield from seat.wave(begin)
        except TooLate:
            continue
        yield done
