"""A lost server is looked for as long as `--retry` says, with pauses, whatever it answers: nobody spins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import SupportsBytes

import pytest
import torch
from live import Quiet
from safetensors.torch import save_file

from sl_client.inference.predictor import Predictor
from sl_client.training.runner import Runner
from sl_client.transport.stream import ClientStream, StreamBroken
from sl_client.transport.tries import TRY_S, Tries
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import PeerLost
from sl_common.messages.inference import Offer
from sl_common.network.network import Network
from sl_common.wire import Endpoint, Greeting, Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tries(retry_s: float) -> tuple[Tries, Clock]:
    clock = Clock()
    looked = Tries("host:1", retry_s, 5.0, clock)
    looked.begin()
    return looked, clock


def test_pauses_grow_and_end_when_the_time_is_over() -> None:
    looked, clock = tries(60.0)
    pauses = []

    def look() -> None:
        while pause := looked.failed("gone"):
            pauses.append(pause)
            clock.now += pause

    with pytest.raises(PeerLost, match=r"no server at host:1 for 60 s; the last try said: gone"):
        look()
    assert 10 < len(pauses) < 40
    assert max(pauses) <= 5.0
    assert pauses[0] <= 0.1


def test_who_was_there_is_looked_for_more_often() -> None:
    looked, clock = tries(60.0)
    for _ in range(20):
        pause = looked.failed("gone", 0.5)
        clock.now += pause
        assert pause <= 0.5


def test_a_pause_of_this_process_is_no_time_in_which_the_server_was_away() -> None:
    looked, clock = tries(10.0)
    looked.failed("gone")
    clock.now += 10_000.0
    assert looked.failed("gone") <= 0.2
    clock.now += TRY_S
    with pytest.raises(PeerLost):
        looked.failed("gone")


def test_after_a_good_stream_all_begins_anew() -> None:
    looked, clock = tries(10.0)
    for _ in range(4):
        looked.failed("gone")
    looked.went_well()
    clock.now += 20.0
    looked.begin()
    assert looked.failed("gone") <= 0.1


class Script(ClientStream):
    """A stream of a server that says these frames, then ends it. Every stream is counted."""

    opened = 0

    def __init__(self, frames: Iterator[bytes]) -> None:
        type(self).opened += 1
        self._frames = frames

    def send(self, frame: SupportsBytes) -> None:
        pass

    def receive(self) -> bytes:
        frame = next(self._frames, None)
        if frame is None:
            raise StreamBroken("the server ended the stream")
        return frame

    def check(self, acknowledged: int) -> None:
        pass

    def close(self) -> None:
        pass

    cancel = finish = close


GREETING = Greeting(client="c0", received=0, resumed=False, incarnation=1, software="0").to_frame()
FORGOTTEN = Refusal(code="forgotten", reason="join again").to_frame()


def counted(answers: Iterator[list[bytes]]) -> type[Script]:
    return type(
        "Counted", (Script,), {"opened": 0, "__init__": lambda self, _: Script.__init__(self, iter(next(answers)))}
    )


def cycle(*streams: list[bytes]) -> Iterator[list[bytes]]:
    while True:
        yield from streams


@pytest.mark.parametrize(
    "streams", [[[GREETING]], [[GREETING], [FORGOTTEN]]], ids=["greets and goes", "forgets again and again"]
)
def test_a_server_that_greets_and_brings_nothing_is_given_up(streams: list[list[bytes]]) -> None:
    carrier = counted(cycle(*streams))
    began = time.monotonic()
    with pytest.raises(PeerLost, match=r"no server at nowhere for 1\.5 s"):
        Runner("nowhere", show=Quiet(), retry_s=1.5, connect=carrier).run()
    assert 4 <= carrier.opened <= 20
    assert time.monotonic() - began < 30


def test_a_server_that_offers_and_does_not_answer_is_given_up(tmp_path: Path) -> None:
    offering = Endpoint("server", link=Link(), limit_bytes=1, call="infer")
    config = RunConfig.from_toml('[model]\nname = "mlp"\nargs = { hidden = [4] }')
    (offer,) = offering.pack(Offer(config=config.to_json(), lower_sha256=b""))
    carrier = counted(cycle([GREETING, offer.data]))
    save_file(Network.build(config).lower.state_dict(), tmp_path / "lower.safetensors")
    asked = Predictor("nowhere", retry_s=1.5, connect=carrier, lower=tmp_path / "lower.safetensors")
    asked.open()
    with pytest.raises(PeerLost, match=r"no server at nowhere for 1\.5 s"):
        list(asked.ask([torch.zeros(1, 1, 8, 8)]))
    assert 4 <= carrier.opened <= 20
