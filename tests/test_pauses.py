"""Time in which a process was stopped, or computed for long, is charged to nobody."""

from __future__ import annotations

import time
from itertools import pairwise

from live import serving
from world import make_config

from sl_common.messages.events import Tick
from sl_common.pauses import LONGEST_LOOK_S, PauseClock


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
        live.engine.inbox.put(lambda: time.sleep(3 * LONGEST_LOOK_S))
        live.engine.inbox.put(lambda: woken.append(len(ticks)))
        until = time.monotonic() + 60
        while not woken or len(ticks) < woken[0] + 3:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert max(b - a for a, b in pairwise(ticks)) < 2 * LONGEST_LOOK_S
