"""Time in which a process was stopped, or computed for long, is charged to nobody."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from federation import federation, sha_of, slow_config
from live import serving
from tally import Faults
from world import make_config

from sl_common.messages import Tick
from sl_common.pauses import LONGEST_S, PauseClock


def test_time_passes_as_it_does_where_somebody_looks() -> None:
    clock = PauseClock(100.0, 2.0)
    assert [clock.read(now) for now in (100.0, 100.5, 102.5, 103.0)] == [0.0, 0.5, 2.5, 3.0]


def test_a_gap_counts_as_no_more_than_one_look() -> None:
    clock = PauseClock(100.0, 2.0)
    assert [clock.read(now) for now in (101.0, 5000.0, 5000.5, 9000.0)] == [1.0, 3.0, 3.5, 5.5]


def test_it_never_goes_back() -> None:
    clock = PauseClock(100.0)
    seen = [clock.read(now) for now in (101.0, 99.0, 99.5, 50.0, 51.0)]
    assert all(a <= b for a, b in pairwise(seen))


def test_the_coordinators_time_stands_still_with_the_loop() -> None:
    """Barriers and the wait for clients that come back go by its ticks."""
    barrier = '{ kind = "quorum", fraction = 0.5, timeout_s = 60 }'
    with serving(make_config("parallel", protocol__barrier=barrier, run__clients=2)) as live:
        ticks: list[float] = []

        class Log:
            def append(self, entry: tuple[str, object]) -> None:
                if isinstance(entry[1], Tick):
                    ticks.append(entry[1].now)

        live.engine.sessions.log = Log()
        woken: list[int] = []  # how many ticks there were when the loop went on
        live.engine._inbox.put(lambda: time.sleep(3 * LONGEST_S))
        live.engine._inbox.put(lambda: woken.append(len(ticks)))
        until = time.monotonic() + 60
        while not woken or len(ticks) < woken[0] + 3:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert max(b - a for a, b in pairwise(ticks)) < 2 * LONGEST_S


@pytest.mark.slow
def test_a_server_that_was_stopped_goes_on_with_the_same_clients(tmp_path: Path, faults: Faults) -> None:
    """SIGSTOP for longer than run.grace_s and every limit of silence: nobody is refused, and the bits are the same."""
    limits = {"server__limits__silent_s": 5.0, "server__limits__stall_s": 5.0}
    config = slow_config("parallel", run__rounds=12, run__grace_s=5.0, **limits)
    with federation(config, tmp_path, faults) as run:
        run.wait_for(1, "wave_begun")
        run.server.signal(signal.SIGSTOP)
        time.sleep(8.0)
        run.server.signal(signal.SIGCONT)
        summary = run.summary()
    assert summary["weights_sha256"] == sha_of(config)
    assert not [line for line in run.lines() if line["event"] in ("client_left", "rejected")]
