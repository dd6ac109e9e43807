"""Hostile peers of a server that answers after a run, over real sockets: each is slowed or refused, and who asks beside it notices nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asked import LiveAnswers, Stranger, answering, trained_in
from raw_http2 import Line, prefixed
from test_export import digits
from world import make_config

from sl_client.inference.predictor import Predictor
from sl_client.transport.stream import GrpcStream, RefusedForNow
from sl_common.errors import Refused
from sl_common.messages.inference import Query
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Hello, read_answer
from sl_server.storage.trained import TrainedRun, read_trained_run
from sl_server.transport.server import PENDING_CALLS

SMALL = {"model__name": "cnn", "model__args": "{ channels = [4, 8], hidden = 16 }", "run__rounds": 1}
X, _Y = digits()
Z = torch.zeros(8, 4, 4, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    out: Path = tmp_path_factory.mktemp("trained") / "run"
    trained_in(out, make_config("splitfed_v1", **SMALL))
    return read_trained_run(out, lambda _text: None)


class Polite(threading.Thread):
    """Asks the same all the time, until it is told to end."""

    def __init__(self, live: LiveAnswers) -> None:
        super().__init__()
        self.told: list[str] = []
        self.answers: list[torch.Tensor] = []
        self.error: BaseException | None = None
        self.enough = threading.Event()
        self._asked = Predictor(live.address, warn=self.told.append)
        self._asked.open()
        self.start()

    def run(self) -> None:
        try:
            with self._asked as asked:
                while not self.enough.is_set():
                    self.answers += [answer.scores for answer in asked.ask([X[:8]])]
                    time.sleep(0.005)
        except BaseException as error:  # the test looks at it
            self.error = error


@contextmanager
def attacked(trained: TrainedRun, **limits: object) -> Iterator[LiveAnswers]:
    """Inside, somebody else is answered all the time, and always the same, but for the rounding of a pass with others."""
    settings = {f"server__limits__{key}": value for key, value in limits.items()}
    with answering(replace(trained, config=make_config("splitfed_v1", **SMALL, **settings))) as live:
        polite = Polite(live)
        try:
            yield live
            so_far = len(polite.answers)
            assert wait_until(lambda: len(polite.answers) > so_far + 2)
        finally:
            polite.enough.set()
            polite.join(20)
    assert (polite.error, polite.told) == (None, [])
    assert all(torch.allclose(scores, polite.answers[0], atol=1e-6) for scores in polite.answers)


def wait_until(so: Callable[[], bool], limit_s: float = 15.0) -> bool:
    until = time.monotonic() + limit_s
    while not so() and time.monotonic() < until:
        time.sleep(0.02)
    return so()


def refused(live: LiveAnswers, reason: str, count: int = 1) -> bool:
    return wait_until(lambda: live.sample("sl_rejected_total", reason=reason) >= count)


def said(live: LiveAnswers, reason: str) -> list[str]:
    return [text for text in live.warnings if f"({reason})" in text]


# --- before the Hello


def test_a_stream_that_says_nothing_is_refused_in_time(trained: TrainedRun) -> None:
    with attacked(trained, hello_s=0.4) as live, Line(live.address) as line:
        for _ in range(20):
            line.call(method="Infer")
        assert refused(live, "silent", 20)
        assert said(live, "silent") == [
            "refused a client at 127.0.0.1 (silent): said nothing within server.limits.hello_s = 0.4 s"
        ]
        assert line.heard(0.5).count(b"hello_s") == 20, "each is told"


def test_of_too_many_strangers_the_most_silent_go(trained: TrainedRun) -> None:
    with attacked(trained, hello_s=30, strangers=8) as live, ExitStack() as stack:
        for _ in range(4):
            line = stack.enter_context(Line(live.address))
            for _ in range(PENDING_CALLS // 4):
                line.call(method="Infer")
        assert refused(live, "crowded", PENDING_CALLS - 8)
        with Predictor(live.address) as late:
            late.open()
            assert len(list(late.ask([X[:8]]))) == 1, "who says Hello is not the most silent one"


# --- those who were let in


def test_no_more_streams_than_allowed(trained: TrainedRun) -> None:
    with attacked(trained, sessions=3) as live:
        first, second = Stranger(live), Stranger(live)
        error = read_answer(Stranger(live).greeting)
        assert (error.code, error.reason) == ("full", "3 clients are here, server.limits.sessions = 3")
        first.carrier.close()
        assert wait_until(lambda: live.sample("sl_clients", state="connected") == 2)
        third = Stranger(live)
        third.say(Query(step=0, z=Z))
        assert third.hear() is not None
        for stranger in (second, third):
            stranger.carrier.close()


def test_who_asks_nothing_is_refused_and_a_client_that_was_idle_asks_again(trained: TrainedRun) -> None:
    with attacked(trained, silent_s=0.6) as live:
        told: list[str] = []
        with Predictor(live.address, warn=told.append) as idle:
            idle.open()
            error = Stranger(live).is_refused()
            assert (error.code, error.reason) == ("silent", "it is its turn; server.limits.silent_s = 0.6 s are over")
            assert refused(live, "silent", 2)
            assert len(list(idle.ask([X[:8]]))) == 1
        assert len(told) == 1
        assert "refused for now (silent)" in told[0]


def test_half_of_a_grpc_message_is_nothing_said(trained: TrainedRun) -> None:
    with attacked(trained, silent_s=1.0) as live, Line(live.address) as line:
        stream = line.call(method="Infer")
        line.say(stream, prefixed(Hello(life=bytes(16)).to_frame()))
        line.say(stream, prefixed(b"", says=1 << 20))
        for _ in range(8):
            line.say(stream, b"x")
            time.sleep(0.1)
        assert refused(live, "silent")
        assert b"server.limits.silent_s = 1 s are over" in line.heard(0.5)


@pytest.mark.parametrize("frames", [1, 12], ids=["then nothing", "then drop by drop"])
def test_a_message_that_does_not_come_nearer_to_its_end_is_refused(trained: TrainedRun, frames: int) -> None:
    with attacked(trained, stall_s=0.6) as live:
        slow = Stranger(live, chunk_bytes=8)
        for frame in slow.endpoint.pack(Query(step=0, z=Z))[:frames]:
            slow.carrier.send(frame.data)
            time.sleep(0.1)
        assert slow.is_refused().code == "slow"
        assert "server.limits.stall_s = 0.6 s" in said(live, "slow")[0]


def test_who_waits_for_its_answer_may_be_silent(trained: TrainedRun) -> None:
    """The loop is held up: what it has not answered is not the client's fault, nor what it has not read yet."""
    with attacked(trained, silent_s=1.0, stall_s=1.0) as live:
        stranger = Stranger(live, chunk_bytes=100)
        live.inference.inbox.put(lambda: time.sleep(2.5))
        stranger.say(Query(step=0, z=Z))
        stranger.hear()
        assert stranger.hear().step == 0
        stranger.carrier.close()
        assert not live.warnings


def test_who_sends_faster_than_allowed_is_slowed_not_buffered(trained: TrainedRun) -> None:
    with attacked(trained, frames_per_s=400) as live:
        fast, data = Stranger(live), pb.ClientFrame(ack=0).SerializeToString() or b"\x10\x00"
        for _ in range(1200):
            fast.carrier.send(data)
        most, began = 0, time.monotonic()
        while time.monotonic() - began < 1.5:
            most = max(most, live.inference.inbox.backlog)
            time.sleep(0.02)
        assert most < 1 << 20
        assert live.sample("sl_slowed_seconds_total") > 0.3
        fast.say(Query(step=0, z=Z))
        fast.hear()
        assert fast.hear().step == 0, "it is slowed, not refused"
        fast.carrier.close()
        assert not live.warnings


def test_a_hello_storm_is_slowed_then_refused(trained: TrainedRun) -> None:
    with attacked(
        trained, hello_s=1.5, hellos_per_minute=30
    ) as live:  # shorter, and a busy machine reads some too late
        codes = set()
        for _ in range(45):
            carrier = GrpcStream(live.address, call="Infer")
            carrier.send(Hello(life=bytes(16)).to_frame())
            try:
                carrier.receive()
                codes.add("in")
            except (RefusedForNow, Refused) as error:
                codes.add(error.code)
            carrier.close()
        assert codes == {"in", "rate"}
