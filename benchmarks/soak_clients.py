"""Clients that come and go, in one process: real streams and whole lives; only the processes are missing.

python -m benchmarks.soak_clients --address HOST:PORT --clients N --seed S. Some stay for the whole run; the others leave after a drawn
time, politely, by vanishing, or only for a moment, and come again under the same name.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from collections import Counter

from sl_client.console.show import ClientLines
from sl_client.training.runner import Runner
from sl_client.transport.connection import Interrupted
from sl_client.transport.stream import ClientStream, GrpcStream, StreamBroken
from sl_common.errors import PeerLost, Refused

STAY = 2  # clients that never leave, so that the run goes on


class _Silent(ClientLines):
    def say(self, event: str, text: str, **fields: object) -> None:
        """Nothing."""


class _Gone(Exception):
    """Its process would be gone by now."""


class _Stream(GrpcStream):
    """A stream that can be left without a word."""

    gone = False

    def vanish(self) -> None:
        """As if the process were killed: nothing more is said."""
        self.gone = True
        self.cancel()

    def send(self, frame: bytes) -> None:
        """Hand a frame to the stream."""
        if not self.gone:
            super().send(frame)

    def receive(self) -> bytes:
        """The next frame."""
        try:
            return super().receive()
        except StreamBroken:
            if self.gone:
                raise _Gone from None
            raise

    def finish(self) -> None:
        """End our half, if there is anybody to do it."""
        if self.gone:
            self.close()
        else:
            super().finish()


class Visitor:
    """One client's lives, one after the other."""

    def __init__(self, address: str, number: int, seed: int, counts: Counter[str], over: threading.Event) -> None:
        self._address, self._name, self._stays = address, f"c{number}", number < STAY
        self._random, self._counts = random.Random(f"{seed}/{number}"), counts
        self._stream: _Stream | None = None
        self._over = over  # the run's
        self.thread = threading.Thread(target=self._live, name=self._name)

    def _connect(self, server: str) -> ClientStream:
        self._stream = _Stream(server)
        return self._stream

    def _live(self) -> None:
        while not self._over.is_set():
            runner = Runner(self._address, name=self._name, show=_Silent(), retry_s=20.0, connect=self._connect)
            dead = threading.Event()
            whims = threading.Thread(target=self._follow_whims, args=(runner, dead))
            if not self._stays:
                whims.start()
            try:
                runner.run()
                self._over.set()
            except (Interrupted, _Gone):
                self._counts["lives"] += 1
            except Refused as error:
                if error.code == "over":
                    self._over.set()
            except PeerLost:
                self._over.set()
            dead.set()
            if not self._stays:
                whims.join()
            self._over.wait(self._random.uniform(0.0, 1.5))

    def _follow_whims(self, runner: Runner, dead: threading.Event) -> None:
        """Until this life is over: after a while go, or lose the stream and come again."""
        while not dead.wait(self._random.uniform(0.3, 3.0)):
            way = self._random.choice(("leave", "vanish", "cut"))
            self._counts[way] += 1
            stream = self._stream
            if way == "leave":
                runner.interrupt()
            elif stream is not None and way == "vanish":
                stream.vanish()
            elif stream is not None:
                stream.cancel()


def main() -> None:
    """Until the run is over; what happened as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts, over = Counter[str](), threading.Event()
    visitors = [Visitor(args.address, n, args.seed, counts, over) for n in range(args.clients)]
    for visitor in visitors:
        visitor.thread.start()
    for visitor in visitors:
        visitor.thread.join()
    print(json.dumps({"visits": counts}), flush=True)


if __name__ == "__main__":
    main()
