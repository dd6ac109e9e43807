"""What a client says of itself: counted or bounded, and refused with both values where it does not fit."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from test_faults import assert_finished
from world import World, make_config

from sl_client.training.seat import take_seat
from sl_common.client.seat import Seat
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.messages.facts import ClientLeft
from sl_common.messages.training import Alive, Begin, Directive, Done, Gradient, Ready, Smashed, Welcome
from sl_common.proto import split_pb2 as pb
from sl_common.protocol import Draws
from sl_common.wire.timing import MAX_PHASE_S, Timing
from sl_server.core.claims import Due, check_ready, due_of, most_evaluated

OWN = {
    "data__name": '"mine:data"',
    "model__input": "[1, 8, 8]",
    "model__classes": 10,
    "data__partition": '{ kind = "own" }',
}


def config(preset: str = "parallel", **overrides: object) -> RunConfig:
    return make_config(preset, **overrides)


def seat_of(run: RunConfig, shard: int) -> Seat:
    return take_seat(Welcome(config=run.to_json(), client="", shard=shard, shards=run.shards), data=None, allowed=None)


@pytest.mark.parametrize(
    ("samples", "batches", "said"),
    [
        (2**40, 2**35, "1 to 480 are possible: data.name = 'digits' has 1438, in 3 shards"),
        (481, 16, "1 to 480 are possible"),
        (0, 0, "ready with 0 training samples"),
        (480, 14, "480 samples in 14 batches an epoch, data.batch_size = 32 makes them 15"),
        (480, 2**63, "data.batch_size = 32 makes them 15"),
    ],
)
def test_samples_and_batches_are_held_against_the_data_that_the_server_knows(
    samples: int, batches: int, said: str
) -> None:
    with pytest.raises(WireError, match=said):
        check_ready(config(), Ready(samples=samples, batches=batches))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "own"])
@pytest.mark.parametrize("preset", ["parallel", "sglr"])
def test_every_partition_of_the_real_data_passes(partition: str, preset: str) -> None:
    more = ", alpha = 0.1" if partition == "dirichlet" else ""
    run = config(preset, data__partition=f'{{ kind = "{partition}"{more} }}')
    for shard in range(3):
        check_ready(run, seat_of(run, shard).ready)


def test_a_last_batch_that_is_left_out_does_not_count() -> None:
    check_ready(config("sglr"), Ready(samples=448, batches=14))
    with pytest.raises(WireError, match="a last, smaller one is left out"):
        check_ready(config("sglr"), Ready(samples=460, batches=15))


def test_max_samples_bounds_what_nobody_can_count() -> None:
    run = config("fedavg", **OWN)
    check_ready(run, Ready(samples=2**39, batches=2**34))
    bounded = config("fedavg", data__max_samples=500, **OWN)
    check_ready(bounded, Ready(samples=500, batches=16))
    with pytest.raises(WireError, match=r"501 training samples, 1 to 500 are possible: data.max_samples = 500"):
        check_ready(bounded, Ready(samples=501, batches=16))
    with pytest.raises(WireError, match="checkpoint"):
        check_ready(bounded, Ready(samples=500, batches=16, snapshots=(2**63,)))


@pytest.mark.parametrize(
    ("preset", "overrides", "warned"),
    [
        ("fedavg", OWN, True),
        ("cse_fsl", OWN, True),
        ("splitfed_v2", OWN, True),  # make_config trains by steps, which tell nothing of |D|
        ("splitfed_v2", OWN | {"client__wave": "{ epochs = 1 }"}, False),
        ("fedavg", OWN | {"data__max_samples": 100}, False),
        ("fedavg", {}, False),
        ("parallel", OWN, False),
    ],
)
def test_what_nobody_can_count_is_a_caution(preset: str, overrides: dict[str, object], warned: bool) -> None:
    said = [text for text in config(preset, **overrides).cautions if "data.max_samples" in text]
    assert bool(said) == warned


# --- what is due


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [1, 4, 5, 7, 15, 16, 31])
def test_what_is_due_is_what_a_learner_sends(preset: str, steps: int) -> None:
    """Against the real learner, over the ends of epochs, with a wave that begins in the middle of one."""
    run = config(preset, run__rounds=1, client__wave=f"{{ steps = {steps} }}", eval__every=0)
    seat = seat_of(run, 1)
    ready = seat.ready
    due = due_of(run, ready.samples, ready.batches, Begin(round=0, rounds=1, first=7, steps=steps))
    batches = list(seat.data.train(7, steps))
    exchange = run.protocol.learner.train(seat.bank, iter(batches), Directive(), draws())
    sent, tally = [], None
    answer: object = None
    while tally is None:
        try:
            said = exchange.send(answer)
        except StopIteration as stop:
            tally = stop.value
            break
        answer = None
        if isinstance(said, Smashed):
            sent.append(len(said.y))
            last, answer = said, said.step
        elif not isinstance(said, Alive):
            answer = replace_reply(last)
    assert (len(due.sent), due.sent_rows, due.all_rows) == (len(sent), sum(sent), tally.samples)
    assert [due.rows(7 + step) for step in due.sent] == sent


def draws():
    return Draws(seed=0, round=0, shard=1)


def replace_reply(batch: Smashed):
    return Gradient(step=batch.step, loss=1.0, dz=torch.zeros_like(batch.z))


def test_a_claim_of_any_size_costs_nothing_to_look_at() -> None:
    run = config("cse_fsl", **OWN)
    due = due_of(run, 2**39, 2**34, Begin(round=0, rounds=1, steps=2**40))
    assert len(due.sent) == 2**40 // 2
    assert due.all_rows == 2**40 * 32


def liar(preset: str, change, **overrides: object) -> tuple[World, str]:
    """A federation in which c1 changes what it says; how it was refused."""
    world = World(config(preset, data__shards=3, **overrides))
    for _ in range(3):
        world.join()
    evil = world.clients["c1"]
    pack = evil.endpoint.pack
    evil.endpoint.pack = lambda message: [frame for said in change(message) for frame in pack(said)]
    with pytest.raises(WireError) as caught:
        world.run()
    evil.gone = True
    world.run()
    assert_finished(world)
    (left,) = [fact for fact in world.facts if isinstance(fact, ClientLeft)]
    assert left.client == "c1"
    assert left.reason.startswith("broke the protocol: ")
    return world, str(caught.value)


def of_done(**fields: object):
    return lambda said: [replace(said, **fields) if isinstance(said, Done) else said]


@pytest.mark.parametrize("preset", ["parallel", "cse_fsl", "fsl_sage"])
def test_a_done_without_its_batches_is_refused(preset: str) -> None:
    def skip(said: object) -> list[object]:
        return [] if isinstance(said, Smashed) else [said]

    if preset == "cse_fsl":  # nothing is awaited, so that it comes to its end
        _, text = liar(preset, skip)
        assert "done after sending 0 batches, 1 of this wave's 3 cross the cut" in text
    done = Done(round=0, wave=0, steps=3, samples=96)
    _, text = liar(preset, lambda said: [replace_done(done, preset)] if isinstance(said, Smashed) else [said])
    assert "cross the cut" in text


def replace_done(done: Done, preset: str) -> Done:
    parts = PRESETS[preset].protocol.learner.parts
    upload = () if preset == "parallel" else ("lower", "aux") if preset == "cse_fsl" else ("lower",)
    network = World(config(preset)).coordinator.network
    weights = {part: dict(network.part(part).state_dict()) for part in upload}
    return replace(done, digests=dict.fromkeys(parts, bytes(32)), weights=weights)


def test_samples_that_did_not_come_are_refused() -> None:
    """It says 480 and sends batches of 4."""

    def thin(said: object) -> list[object]:
        if isinstance(said, Smashed) and said.train:
            return [replace(said, z=said.z[:4], y=said.y[:4], needs_grad=False)]
        return [said]

    _, text = liar("cse_fsl", thin)
    assert "done after sending 4 samples, 479 an epoch make 32 in this wave" in text


@pytest.mark.parametrize(
    ("preset", "fields", "said"),
    [
        ("parallel", {"steps": 2**63}, "done after 9223372036854775808 batches, this wave has 3"),
        ("parallel", {"samples": 2**64 - 1}, "samples, this wave has 96"),
        ("fedavg", {"samples": 95}, "done reports 95 samples, this wave has 96"),
        ("parallel", {"loss_sum": 1.0}, "a loss of 1.0 over 96 samples, 0 to 0 are possible"),
        ("fedavg", {"loss_sum": -1e9}, "a loss of -1000000000.0"),
        ("fedavg", {"loss_sum": 1e30}, "a loss of 1e\\+30 over 96 samples, 0 to 9.6e\\+07 are possible"),
        ("fedavg", {"loss_sum": math.nan}, "a loss of nan"),
        ("fedavg", {"loss_sum": math.inf}, "a loss of inf"),
    ],
)
def test_the_numbers_of_a_done_are_those_that_were_counted(preset: str, fields: dict[str, object], said: str) -> None:
    world, text = liar(preset, of_done(**fields))
    assert re.search(said, text), text
    assert all(math.isfinite(loss) for loss in world.coordinator._schedule.losses)


# --- evaluation


def test_more_evaluation_batches_than_the_test_set_has_are_refused() -> None:
    def flood(said: object) -> list[object]:
        if isinstance(said, Smashed) and not said.train and not said.needs_grad:
            return [replace(said, step=step) for step in range(said.step, said.step + 5)]
        return [said]

    _, text = liar("splitfed_v1", flood, client__window=100)
    assert "samples to evaluate, this client's part of the test set has at most 120" in text


def test_an_evaluation_counts_what_came() -> None:
    def short(said: object) -> list[object]:
        return [replace(said, samples=said.samples + 1) if isinstance(said, Done) and not said.digests else said]

    _, text = liar("splitfed_v1", short)
    assert "done reports 121 samples, this wave has 120" in text


def test_the_slices_of_a_test_set_are_the_test_set() -> None:
    run = config()
    slices = [most_evaluated(run, Begin(round=0, rounds=1, evaluate=True, slice=n, slices=7)) for n in range(7)]
    assert sum(slices) == 359
    assert most_evaluated(run, Begin(round=0, rounds=1, samples=100)) == 100
    own = config(data__max_samples=50, **OWN)
    assert most_evaluated(own, Begin(round=0, rounds=1, slice=1, slices=2)) == 50


# --- timings


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e9, -1e-9, MAX_PHASE_S * 1.01])
@pytest.mark.parametrize("phase", ["forward", "encode", "round_trip", "decode", "backward"])
def test_a_time_that_no_phase_can_take_is_refused(phase: str, value: float) -> None:
    with pytest.raises(WireError, match=f"timing says that {phase} took {value} s, between 0 and 86400 s"):
        Timing.from_header(pb.Timing(step=1, **{phase: value}))
    with pytest.raises(WireError, match="timing is of step"):
        Timing.from_header(pb.Timing(step=2**64 - 1))


def test_a_client_that_waited_for_days_says_a_day() -> None:
    timing = Timing(step=1, forward=1.0, encode=0.5, round_trip=1e6, decode=0.0, backward=2.0)
    assert Timing.from_header(timing.to_header()) == replace(timing, round_trip=MAX_PHASE_S)


def test_due_is_a_value() -> None:
    due = Due(samples=5, batches=2, batch_size=4, first=1, steps=3, sent=range(3))
    assert [due.rows(n) for n in range(1, 4)] == [1, 4, 1]
    assert due.all_rows == due.sent_rows == 6
