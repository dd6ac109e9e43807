"""Laws of waves, gates, barriers and merges: what every member of each union must keep, then what each is for."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import Any

import pytest
import torch
from drawn import LAW, bytes_of
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from unions import members

from sl_common.messages.training import Directive
from sl_common.protocol import (
    All,
    Always,
    At,
    Average,
    Each,
    Handoff,
    Head,
    InTurn,
    Keep,
    Local,
    Parallel,
    Protocol,
    Quorum,
    Record,
    Sequential,
    WaitUntil,
)
from sl_common.protocol.barrier import Barrier
from sl_common.protocol.gate import Gate
from sl_common.protocol.learner import Learner
from sl_common.protocol.merge import Merge
from sl_common.protocol.waves import Waves
from sl_common.tensors import weighted_mean

UNIONS = (Waves, Gate, Learner, Barrier, Merge)
WAVES = [*(member() for member in members(Waves)), Parallel(fraction=0.5), Sequential(shuffle=True)]
IN_TURN = [InTurn(order=order, unit=unit) for order in ("fixed", "shuffled") for unit in ("batch", "epoch")]
BARRIERS = [*(member() for member in members(Barrier)), *IN_TURN]
MERGES = [*(member() for member in members(Merge)), Average(every=3), Average(weighting="unweighted")]
clients = st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True)


@pytest.mark.parametrize("hook", [member() for union in UNIONS for member in members(union)], ids=repr)
def test_a_hook_is_its_configuration(hook: Any) -> None:
    union = next(union for union in UNIONS if type(hook) in members(union))
    assert TypeAdapter(union).validate_json(hook.model_dump_json()) == hook
    with pytest.raises(ValidationError, match="frozen"):
        hook.kind = "another"
    with pytest.raises(ValidationError, match="forbidden"):
        type(hook)(nonsense=1)


# --- waves


@pytest.mark.parametrize("waves", WAVES, ids=repr)
@LAW
@given(data=st.data(), who=clients, seed=st.integers(0, 9), turn=st.integers(0, 9))
def test_a_plan_names_clients_once_whatever_their_order(
    waves: Any, data: Any, who: list[int], seed: int, turn: int
) -> None:
    at = At(seed=seed, round=turn)
    plan = waves.plan(who, at)
    planned = list(itertools.chain(*plan))
    assert all(plan)
    assert len(set(planned)) == len(planned)
    assert set(planned) <= set(who)
    assert waves.plan(data.draw(st.permutations(who)), at) == plan


@pytest.mark.parametrize("waves", [Parallel(), Sequential(), Sequential(shuffle=True)], ids=repr)
@LAW
@given(who=clients, seed=st.integers(0, 9))
def test_nobody_is_left_out(waves: Any, who: list[int], seed: int) -> None:
    assert sorted(itertools.chain(*waves.plan(who, At(seed=seed)))) == sorted(who)


@pytest.mark.parametrize("waves", [Parallel(fraction=0.5), Sequential(shuffle=True)], ids=repr)
def test_drawn_plans_change_with_seed_and_round(waves: Any) -> None:
    who = list(range(10))
    assert len({str(waves.plan(who, At(seed=seed))) for seed in range(10)}) > 5
    assert len({str(waves.plan(who, At(seed=0, round=turn))) for turn in range(10)}) > 5
    drawn = [waves.plan(who, At(seed=seed))[0][0] for seed in range(60)]
    assert len(set(drawn)) > 3


@pytest.mark.parametrize(("fraction", "size"), [(0.01, 1), (0.3, 3), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_a_fraction_is_rounded_and_never_nobody(fraction: float, size: int) -> None:
    [wave] = Parallel(fraction=fraction).plan(range(10), At(seed=1))
    assert len(wave) == size
    assert wave == sorted(wave)


def test_plans_without_a_draw() -> None:
    assert Parallel().plan([3, 1, 2], At(seed=0)) == [[1, 2, 3]]
    assert Sequential().plan([3, 1, 2], At(seed=0)) == [[1], [2], [3]]


# --- gate


@pytest.mark.parametrize("gate", [member() for member in members(Gate)], ids=repr)
@LAW
@given(losses=st.lists(st.floats(0, 10), max_size=5))
def test_a_gate_is_a_pure_function_that_gives_a_directive(gate: Any, losses: list[float]) -> None:
    at = At(seed=0, round=len(losses), rounds=10)
    assert isinstance(gate.decide(losses, at), Directive)
    assert gate.decide(losses, at) == gate.decide(tuple(losses), at)


def test_always_is_always() -> None:
    assert Always().decide([], At(seed=0)) == Always().decide([9.0, 0.1], At(seed=0, round=2)) == Directive()


# --- barriers


@pytest.mark.parametrize("barrier", BARRIERS, ids=repr)
@LAW
@given(served=st.dictionaries(st.integers(0, 9), st.integers(0, 4), max_size=6), data=st.data(), seed=st.integers(0, 9))
def test_a_cohort_is_of_those_who_wait(barrier: Any, served: dict[int, int], data: Any, seed: int) -> None:
    waiting = data.draw(st.permutations(sorted(served)))[: data.draw(st.integers(0, len(served)))]
    cohort = barrier.cohort(waiting, served, At(seed=seed))
    if isinstance(cohort, WaitUntil):
        assert cohort.now > 0
        return
    assert set(cohort) <= set(waiting)
    assert len(set(cohort)) == len(cohort)
    assert barrier.cohort(waiting, served, At(seed=seed)) == cohort


@pytest.mark.parametrize("barrier", BARRIERS, ids=repr)
@LAW
@given(served=st.dictionaries(st.integers(0, 9), st.integers(0, 4), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_nobody_waits_when_everybody_is_here(barrier: Any, served: dict[int, int], seed: int) -> None:
    assert barrier.cohort(sorted(served), served, At(seed=seed))


@LAW
@given(served=st.dictionaries(st.integers(0, 9), st.integers(0, 4), min_size=1, max_size=6), data=st.data())
def test_all_waits_for_everybody(served: dict[int, int], data: Any) -> None:
    order = data.draw(st.permutations(sorted(served)))
    for number in range(len(order)):
        assert All().cohort(order[:number], served, At(seed=0)) == []
    assert All().cohort(order, served, At(seed=0)) == sorted(served)


def test_each_takes_the_first_that_came() -> None:
    assert Each().cohort([5, 1, 3], {1: 9, 3: 0, 5: 0}, At(seed=0)) == [5]


def serve(barrier: Any, todo: dict[int, int], arrivals: random.Random, leaver: int = -1, after: int = 0) -> list[int]:
    """Who is served in which order, when every client sends its next batch at an arbitrary time after the last reply.

    `leaver` is gone after so many services of anybody.
    """
    at, served, waiting, order = At(seed=4, round=2), dict.fromkeys(todo, 0), deque[int](), []
    training = set(todo)
    while True:
        if len(order) >= after:
            training.discard(leaver)
        training = {client for client in training if served[client] < todo[client]}
        waiting = deque(client for client in waiting if client in training)
        if not training:
            return order
        cohort = barrier.cohort(list(waiting), {client: served[client] for client in training}, at)
        for client in cohort:
            waiting.remove(client)
            served[client] += 1
            order.append(client)
        if not cohort:
            coming = sorted(training - set(waiting))
            assert coming, "everybody waits for ever"
            waiting.append(arrivals.choice(coming))


todos = st.dictionaries(st.integers(0, 9), st.integers(1, 4), min_size=1, max_size=5)


@pytest.mark.parametrize("barrier", [*IN_TURN, All()], ids=repr)
@LAW
@given(todo=todos, one=st.randoms(use_true_random=False), other=st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_who_is_fast(barrier: Any, todo: dict[int, int], one: Any, other: Any) -> None:
    assert serve(barrier, todo, one) == serve(barrier, todo, other)


@pytest.mark.parametrize("barrier", [*IN_TURN, All()], ids=repr)
@LAW
@given(todo=todos, arrivals=st.randoms(use_true_random=False), after=st.integers(0, 8), data=st.data())
def test_who_leaves_moves_nobody_else(barrier: Any, todo: dict[int, int], arrivals: Any, after: int, data: Any) -> None:
    assume(len(todo) > 1)
    leaver = data.draw(st.sampled_from(sorted(todo)))
    others = [client for client in serve(barrier, todo, arrivals) if client != leaver]
    assert [client for client in serve(barrier, todo, arrivals, leaver, after) if client != leaver] == others


def test_turns_by_epoch_and_by_batch() -> None:
    todo = {2: 2, 0: 1, 1: 3}
    assert serve(InTurn(order="fixed", unit="epoch"), todo, random.Random(0)) == [0, 1, 1, 1, 2, 2]
    assert serve(InTurn(order="fixed", unit="batch"), todo, random.Random(0)) == [0, 1, 2, 1, 2, 1]


def test_shuffled_turns_change_with_seed_round_and_wave() -> None:
    def first(**at: int) -> int | WaitUntil:
        return InTurn().cohort(list(range(10)), dict.fromkeys(range(10), 0), At(**{"seed": 0, **at}))[0]

    for key in ("seed", "round", "wave"):
        assert len({first(**{key: value}) for value in range(30)}) > 5


# --- merge


def weights(client: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(client)
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64)  # sums of float32 would be exact in any order
    return {"w": w, "n": torch.tensor(client)}


def record(who: list[int], turn: int = 0, parts: tuple[str, ...] = ("lower", "head")) -> Record:
    brought = {part: {client: weights(client) for client in who} for part in parts}
    return Record(at=At(seed=0, round=turn), samples={client: 10 + 7 * client for client in who}, weights=brought)


def bits(merged: Any) -> Any:
    return {part: {name: bytes_of(tensor) for name, tensor in state.items()} for part, state in merged.items()}


@pytest.mark.parametrize("merge", MERGES, ids=repr)
@LAW
@given(who=clients, turn=st.integers(0, 6))
def test_a_merge_gives_only_what_it_asked_for(merge: Any, who: list[int], turn: int) -> None:
    """Also where the record holds more: per-client heads are in it whatever is merged."""
    before = record(who, turn)
    saved = {part: {client: bits({"x": state}) for client, state in s.items()} for part, s in before.weights.items()}
    for after in (merge.after_wave, merge.after_round):
        merged = after(before)
        assert set(merged) <= set(merge.needs(before.at))
        assert bits(after(before)) == bits(merged)
        assert after(record([], turn)) == {}, "nobody finished"
    assert {part: {c: bits({"x": s}) for c, s in states.items()} for part, states in before.weights.items()} == saved


def test_keep_keeps() -> None:
    assert Keep().needs(At(seed=0)) == ()
    assert Keep().after_wave(record([0, 1])) == Keep().after_round(record([0, 1])) == {}


def test_handoff_gives_on_what_the_last_one_had() -> None:
    assert bits(Handoff().after_wave(record([3, 1], parts=("lower",)))) == bits({"lower": weights(1)})
    assert Handoff().after_round(record([3, 1])) == {}


@LAW
@given(who=clients, data=st.data())
def test_an_average_does_not_depend_on_who_came_first(who: list[int], data: Any) -> None:
    one = Average(parts=("lower", "head")).after_round(record(who))
    other = Average(parts=("lower", "head")).after_round(record(data.draw(st.permutations(who))))
    assert bits(one) == bits(other)
    assert list(one) == ["lower", "head"]


def test_an_average_weighs_by_samples_or_not_at_all() -> None:
    states = [weights(client) for client in (0, 2, 5)]
    by_samples = weighted_mean(states, [10, 24, 45])
    assert bits(Average().after_round(record([5, 0, 2]))) == bits({"lower": by_samples})
    alike = weighted_mean(states, [1, 1, 1])
    assert bits(Average(weighting="unweighted").after_round(record([5, 0, 2]))) == bits({"lower": alike})
    assert Average().after_wave(record([5, 0, 2])) == {}


def test_an_average_every_so_many_rounds() -> None:
    merge = Average(every=3)
    assert [bool(merge.needs(At(seed=0, round=turn))) for turn in range(7)] == [False, False, True] * 2 + [False]
    assert [bool(merge.after_round(record([0, 1], turn))) for turn in range(7)] == [False, False, True] * 2 + [False]


# --- the record


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"merge": Handoff()}, "handoff needs waves sequential"),
        ({"barrier": All(), "head": Head(copies="per_client")}, "per_client needs barrier each or in_turn"),
        ({"merge": Average(parts=("aux",))}, "merge.parts names 'aux'.*split.*'head', 'lower'"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        Protocol(**fields)


def test_a_shared_head_that_takes_whoever_comes_and_a_quorum_are_all_that_depends_on_timing() -> None:
    assert not Protocol().timing_free
    assert not Protocol(waves=Sequential(), barrier=Quorum()).timing_free
    assert all(Protocol(barrier=barrier).timing_free for barrier in BARRIERS if not isinstance(barrier, Each | Quorum))
    assert Protocol(waves=Sequential()).timing_free
    assert Protocol(learner=Local()).timing_free
    assert Protocol(head=Head(copies="per_client")).timing_free
