"""The arithmetic of server.limits, as laws."""

from __future__ import annotations

from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st

from sl_common.limits import PeerLimits
from sl_server.transport.deadlines import Deadlines
from sl_server.transport.limiter import MAX_KEYS, Bucket, Buckets, MessageProgress, PendingStreams

pauses = st.lists(st.floats(0, 2), min_size=1, max_size=60)


@LAW
@given(st.floats(0.5, 100), st.floats(1, 50), pauses)
def test_who_waits_as_told_keeps_the_rate(per_s: float, burst: float, between: list[float]) -> None:
    now, bucket = 0.0, Bucket(per_s, burst, 0.0)
    for taken, pause in enumerate(between, start=1):
        now += pause
        now += bucket.take(1, now)
        assert taken <= burst + per_s * now + 1e-6


@LAW
@given(st.integers(1, 20), st.integers(0, 60))
def test_who_is_told_to_come_later_does_not_count(burst: int, more: int) -> None:
    buckets = Buckets(1.0, burst)
    answers = [buckets.wait("one", 0.0, 0.0) for _ in range(burst + more)]
    assert answers == [0.0] * burst + [None] * more
    assert buckets.wait("one", 0.0, 1.0) == 0.0, "a second later there is one again"
    assert buckets.wait("another", 0.0, 0.0) == 0.0


def test_thinking_up_keys_fills_no_memory() -> None:
    buckets = Buckets(1.0, 1)
    for number in range(MAX_KEYS + 500):
        buckets.wait(str(number), 0.0, 0.0)
    assert len(buckets._kept) == MAX_KEYS


@LAW
@given(
    st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["enter", "asks", "leave"])), max_size=60)
)
def test_there_are_never_more_strangers_than_room(room: int, steps: list[tuple[int, str]]) -> None:
    strangers: PendingStreams[int] = PendingStreams(room)
    silent, asking = list[int](), set[int]()
    for who, what in steps:
        if what == "enter" and who not in silent and who not in asking:
            silent.append(who)
            out = silent.pop(0) if len(silent) + len(asking) > room else None
            assert strangers.enter(who) == out
        elif what == "asks":
            strangers.spoke(who)
            if who in silent:
                silent.remove(who)
                asking.add(who)
        elif what == "leave":
            strangers.leave(who)
            silent = [one for one in silent if one != who]
            asking.discard(who)
        assert len(strangers) == len(silent) + len(asking) <= room


def test_a_message_must_come_nearer_to_its_end() -> None:
    progress = MessageProgress(10.0, 5.0)
    assert not progress.stalled(1000, 0.0)
    assert not progress.stalled(999, 9.0)
    assert not progress.stalled(950, 10.0), "5 bytes a second"
    assert progress.stalled(901, 20.0), "one too few"


def test_a_new_message_and_a_pause_begin_anew() -> None:
    progress = MessageProgress(10.0, 5.0)
    progress.stalled(1000, 0.0)
    assert not progress.stalled(0, 11.0), "it is whole"
    assert not progress.stalled(100, 12.0)
    progress.pause(50.0)
    assert not progress.stalled(100, 71.0)
    assert progress.stalled(100, 72.0)


def test_patience_is_with_whose_turn_it_is() -> None:
    patience = Deadlines(PeerLimits(silent_s=10.0), 0.0)
    assert patience.fault(0, 50.0, owes=False, held=False) is None
    assert patience.fault(0, 59.0, owes=True, held=False) is None
    assert patience.fault(0, 99.0, owes=True, held=True) is None, "it cannot speak"
    assert patience.fault(0, 99.5, owes=True, held=False) is None
    patience.heard(100.0)
    assert patience.fault(0, 109.0, owes=True, held=False) is None
    error = patience.fault(0, 111.0, owes=True, held=False)
    assert error is not None
    assert error.code == "silent"
