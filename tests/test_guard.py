"""Numbers that one client poisoned do not reach the others: the client is refused, or its numbers are clipped."""

from __future__ import annotations

import math

import pytest
import torch
from test_faults import assert_finished
from world import World, make_config

from sl_common.config.server_section import Guard
from sl_common.errors import WireError
from sl_common.messages.facts import ClientLeft, RoundEnded
from sl_common.messages.training import Begin, Smashed
from sl_server.core.guard import guarded_batch, guarded_state

HUGE, NAN, INF = 1e6, math.nan, math.inf


def batch(value: float) -> Smashed:
    z = torch.ones(2, 3)
    z[1, 2] = value
    return Smashed(step=4, z=z, y=torch.zeros(2, dtype=torch.int64))


def test_what_is_within_bounds_is_not_touched() -> None:
    for guard in (Guard(), Guard(activations=1.0), Guard(action="clip")):
        whole = batch(-1.0)
        assert guarded_batch(whole, guard) is whole
    assert guarded_batch(batch(HUGE), Guard()).z[1, 2] == HUGE, "far below the default"


@pytest.mark.parametrize(
    ("value", "text"), [(HUGE, "hold 1e.06, at most 10 is allowed"), (NAN, "NaN"), (-INF, "NaN or Inf")]
)
def test_poison_is_refused(value: float, text: str) -> None:
    with pytest.raises(WireError, match=f"activations of batch 4 {text if value == HUGE else '.*' + text}"):
        guarded_batch(batch(value), Guard(activations=10))
    with pytest.raises(WireError, match="weights of c1's lower: bias"):
        guarded_state({"bias": batch(value).z}, Guard(weights=10), "c1's lower")


@pytest.mark.parametrize(("value", "wanted"), [(HUGE, 10.0), (-HUGE, -10.0), (NAN, 0.0), (INF, 10.0), (-INF, -10.0)])
def test_or_clipped(value: float, wanted: float) -> None:
    clipped = guarded_batch(batch(value), Guard(activations=10, action="clip"))
    assert clipped.z.tolist() == [[1, 1, 1], [1, 1, wanted]]
    assert clipped.packed is None, "what is recorded is what was trained on"
    state = {"n": torch.tensor(7), "bias": batch(value).z}
    clean = guarded_state(state, Guard(weights=10, action="clip"), "c1")
    assert clean["n"] == 7
    assert clean["bias"][1, 2] == wanted


def test_a_client_that_explodes_is_left_out_and_the_others_go_on() -> None:
    world = World(make_config("splitfed_v2", server__guard__activations=50.0, run__rounds=3))
    for _ in range(3):
        world.join()
    while world.coordinator.completed_waves < 1:
        world.run(until=1)
    victim = world.clients["c1"].seat.bank.get("lower")
    loads = victim.load

    def exploding(state, what="a segment"):
        loads(state, what)
        with torch.no_grad():
            for p in victim.module.parameters():
                p.mul_(1e4)

    victim.load = exploding
    with pytest.raises(WireError, match="at most 50 is allowed"):
        world.run()
    world.clients["c1"].gone = True
    world.run()
    assert_finished(world)
    (left,) = [f for f in world.facts if isinstance(f, ClientLeft)]
    assert (left.client, "at most 50" in left.reason) == ("c1", True)
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)] == [3, 2, 2]
    assert all(torch.isfinite(t).all() for t in world.coordinator.bank.get("head").state().values())


@pytest.mark.parametrize(("below", "ends"), [("wait", False), ("end", True)])
def test_too_few_clients_wait_or_end(below: str, ends: bool) -> None:
    world = World(make_config("parallel", run__rounds=4, run__min_clients=2, run__below_min=f'"{below}"'))
    for _ in range(3):
        world.join()
    while world.coordinator.completed_waves < 1:
        world.run(until=1)
    for name in ("c0", "c1"):
        world.lose(world.clients[name])
    world.run()
    if ends:
        assert world.coordinator.ended.reason == "1 clients are left, run.min_clients = 2"
        assert not world.coordinator.ended.finished
        assert world.clients["c2"].flow.ended is not None
    else:
        assert world.coordinator.ended is None
        world.join("c0")
        world.run()
        assert_finished(world)


def test_a_client_that_sends_ahead_of_its_window_is_refused() -> None:
    """What lies in the server's memory is bounded, whatever a client does."""
    world = World(
        make_config("cse_fsl", client__wave="{ steps = 50 }", protocol__learner__send_every=1, client__window=3)
    )
    for _ in range(3):
        world.join()
    while not any(isinstance(m, Begin) for _, m in world.said):
        world.run(until=1)

    def send(step: int) -> None:
        z, y = torch.zeros(4, 16), torch.zeros(4, dtype=torch.int64)
        world.coordinator.handle("c2", Smashed(step=step, z=z, y=y, needs_grad=False))

    for step in range(3):
        send(step)
    with pytest.raises(WireError, match=r"batch 3 while 3 are under way, client.window = 3"):
        send(3)
