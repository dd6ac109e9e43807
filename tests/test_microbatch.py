"""Laws of the rule that says which queries go through the head together, by any queue and at any time."""

from __future__ import annotations

from dataclasses import dataclass

from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st

from sl_common.protocol import WaitUntil
from sl_server.inference.microbatch import MicroBatching


@dataclass(frozen=True, eq=False)
class Asked:
    head: int | None
    samples: int
    arrived: float


@st.composite
def queues(draw: st.DrawFn) -> list[Asked]:
    """In the order of arrival."""
    times = sorted(draw(st.lists(st.floats(0, 10), min_size=1, max_size=12)))
    heads, sizes = st.sampled_from([None, 0, 1]), st.integers(1, 40)
    return [Asked(draw(heads), draw(sizes), at) for at in times]


rules = st.builds(MicroBatching, max_samples=st.integers(1, 64), max_wait_s=st.floats(0, 5))
moments = st.floats(10, 20)


@LAW
@given(queues(), rules, st.booleans(), moments)
def test_what_goes_together(waiting: list[Asked], rule: MicroBatching, others: bool, now: float) -> None:
    """One head's, the oldest first, none passed over, no more than are allowed at once unless one alone is more."""
    chosen = rule.choose(waiting, others=others, now=now)
    if isinstance(chosen, WaitUntil):
        assert others
        assert now < chosen.now == waiting[0].arrived + rule.max_wait_s
        return
    same = [one for one in waiting if one.head == waiting[0].head]
    assert chosen == same[: len(chosen)]
    assert chosen
    assert len(chosen) == 1 or sum(one.samples for one in chosen) <= rule.max_samples
    if len(chosen) < len(same):
        assert sum(one.samples for one in same[: len(chosen) + 1]) > rule.max_samples


@LAW
@given(queues(), rules, moments)
def test_nobody_waits_for_who_is_not_there(waiting: list[Asked], rule: MicroBatching, now: float) -> None:
    assert not isinstance(rule.choose(waiting, others=False, now=now), WaitUntil)


@LAW
@given(queues(), rules, st.booleans())
def test_nobody_waits_longer_than_agreed(waiting: list[Asked], rule: MicroBatching, others: bool) -> None:
    late = waiting[0].arrived + rule.max_wait_s
    assert not isinstance(rule.choose(waiting, others=others, now=late), WaitUntil)


@LAW
@given(queues(), rules, moments)
def test_everybody_is_answered_in_the_order_of_asking(waiting: list[Asked], rule: MicroBatching, now: float) -> None:
    """Whatever the rule takes first, of one head's queries none overtakes another."""
    left, answered = list(waiting), []
    while left:
        chosen = rule.choose(left, others=False, now=now)
        answered += chosen
        left = [one for one in left if one not in chosen]
    for head in (None, 0, 1):
        assert [one for one in answered if one.head == head] == [one for one in waiting if one.head == head]


def test_a_full_pass_does_not_wait() -> None:
    two = [Asked(None, 3, 0.0), Asked(None, 5, 0.1)]
    rule = MicroBatching(max_samples=8, max_wait_s=9.0)
    assert rule.choose(two, others=True, now=0.2) == two
    assert rule.choose(two[:1], others=True, now=0.2) == WaitUntil(9.0)
