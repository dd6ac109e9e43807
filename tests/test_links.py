"""Real links between real processes, disturbed by a seeded adversary, and processes that die: nothing is lost, no batch is trained twice.

What it does when is drawn from a seed; what it hits depends on the machine. A fault counts when it has hit something (relay.py).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from federation import Federation, federation_over, sha_of
from live import ClientThread, LiveServer, serving
from relay import Relay, relaying
from tally import Faults
from test_faults import simulated_sha
from world import make_config

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import ClientAway, ClientBack, ClientLeft, RoundEnded, Trained

LINK_FAULTS = ("cut", "delay", "bandwidth", "truncate", "black hole")


class Adversary:
    """Does one thing after the other to the links of a run, until there are enough of each."""

    def __init__(self, relays: Sequence[Relay], seed: int, patience: float = 1.0) -> None:
        """`patience`: how long what lasts does, of a second or two."""
        self._relays, self.random, self._patience = relays, random.Random(seed), patience

    def strike(self, fault: str) -> None:
        """One fault on one link; it may last while others come."""
        relay, draw, a_while = self.random.choice(self._relays), self.random, self._patience
        match fault:
            case "cut":
                relay.cut()
            case "delay":
                relay.delay(draw.uniform(0.005, 0.1), for_s=a_while * draw.uniform(0.3, 1.5))
            case "bandwidth":
                relay.halve(for_s=a_while * draw.uniform(0.5, 2.0))
            case "truncate":
                relay.truncate(draw.randrange(1, 30_000))
            case "black hole":
                relay.black_hole(for_s=a_while * draw.uniform(0.1, 0.8))


def plan(seed: int, each: int, also: Sequence[str] = ()) -> list[str]:
    """Every kind so often, and the others once each, in a drawn order."""
    faults = [*LINK_FAULTS * each, *also]
    random.Random(seed).shuffle(faults)
    return faults


def assert_hit(faults: Faults, injected: Sequence[str]) -> None:
    """Some find no traffic to disturb; most do."""
    assert faults.found.total() >= len(injected) / 3, (faults.found, "hit nothing: the run was too short")


def test_links_that_break_in_every_way_change_nothing(faults: Faults) -> None:
    """Server and clients in threads of this process, real streams over relays between them."""
    config = make_config("splitfed_v1", run__rounds=12, client__wave="{ steps = 20 }", model__args="{ hidden = [256] }")
    with serving(config) as live, relaying(live.address, 3, lambda kind: faults.tell("real links", kind)) as relays:
        clients = [ClientThread(relay.address, name=f"c{n}") for n, relay in enumerate(relays)]
        adversary, injected = Adversary(relays, seed=1, patience=0.3), plan(1, each=3)
        for number, fault in enumerate(injected):
            assert wait_until(lambda so_far=number: rounds_of(live) > so_far * 9 // len(injected))
            time.sleep(adversary.random.uniform(0.0, 0.1))
            adversary.strike(fault)
        for client in clients:
            client.join(60)
        assert [client.bye is not None and client.bye.finished for client in clients] == [True] * 3
        assert live.coordinator.weights_sha256() == simulated_sha(config)
        batches = [(f.client, f.round, f.wave, f.step) for f in live.facts if isinstance(f, Trained)]
    assert len(batches) == len(set(batches))
    assert_hit(faults, injected)


@pytest.mark.slow
def test_a_link_that_carries_nothing_any_more_is_noticed(faults: Faults) -> None:
    """Nobody says that it is dead: the client's own probes do, after 10 s without traffic and 20 s without an answer."""
    config = make_config("parallel", run__clients=2, run__rounds=20, client__wave="{ steps = 20 }", run__grace_s=60)
    with serving(config) as live, relaying(live.address, 2, lambda kind: faults.tell("real links", kind)) as relays:
        clients = [ClientThread(relay.address, name=f"c{n}") for n, relay in enumerate(relays)]
        assert wait_until(lambda: any(isinstance(f, Trained) for f in live.facts))
        relays[0].forget()
        began = time.monotonic()
        assert wait_until(lambda: live.sample("sl_reconnects_total") == 1)
        assert 25 < time.monotonic() - began < 45
        for client in clients:
            client.join(60)
        assert live.coordinator.weights_sha256() == simulated_sha(config)
    assert faults.found["real links", "black hole"] == 1


def test_a_server_notices_a_dead_link_goes_on_and_takes_the_client_back(faults: Faults) -> None:
    """Neither end hears of the other any more. The client's own probes would take 30 s; its link is reset before that."""
    config = make_config(
        "splitfed_v1",
        run__rounds=2000,
        client__wave="{ steps = 20 }",
        run__grace_s=0.5,
        eval__every=0,
        server__limits__dead_s=1.5,
    )
    with serving(config) as live, relaying(live.address, 3, lambda kind: faults.tell("real links", kind)) as relays:
        clients = [ClientThread(relay.address, name=f"c{n}") for n, relay in enumerate(relays)]
        assert wait_until(lambda: rounds_of(live) > 0)
        relays[0].forget(for_s=8)
        began = time.monotonic()
        assert wait_until(lambda: ClientAway(client="c0") in live.facts)
        assert 0.5 < time.monotonic() - began < 3
        assert wait_until(lambda: "c0" not in live.engine.sessions.by_client)
        so_far = rounds_of(live)
        assert wait_until(lambda: rounds_of(live) > so_far + 3), "the others go on"
        assert not {"lost", "forgotten"} & set(clients[0].show.events), "nobody told it"
        assert wait_until(lambda: "c0" in live.engine.sessions.by_client)
        back = rounds_of(live)
        assert wait_until(lambda: any(one.client == "c0" for one in trained_since(live, back))), "it takes part again"
        assert not any("lost" in client.show.events for client in clients[1:])
        live.engine.stop("the test has seen enough")
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * 3
    assert faults.found["real links", "black hole"] == 1


def test_a_client_behind_a_dead_link_that_comes_back_in_time_goes_on_where_it_was(faults: Faults) -> None:
    config = make_config("parallel", run__rounds=12, client__wave="{ steps = 20 }", server__limits__dead_s=1.5)
    with serving(config) as live, relaying(live.address, 3, lambda kind: faults.tell("real links", kind)) as relays:
        clients = [ClientThread(relay.address, name=f"c{n}") for n, relay in enumerate(relays)]
        assert wait_until(lambda: rounds_of(live) > 0)
        relays[0].forget(for_s=4)
        assert wait_until(lambda: ClientAway(client="c0") in live.facts)
        assert wait_until(lambda: ClientBack(client="c0") in live.facts)
        for client in clients:
            client.join(60)
        assert live.coordinator.weights_sha256() == simulated_sha(config)
    assert not any(isinstance(fact, ClientLeft) for fact in live.facts)
    assert faults.found["real links", "black hole"] == 1


def trained_since(live: LiveServer, number: int) -> list[Trained]:
    """Batches of rounds from this one on."""
    return [fact for fact in list(live.facts) if isinstance(fact, Trained) and fact.round >= number]


def rounds_of(live: LiveServer) -> int:
    """That are over."""
    return sum(isinstance(fact, RoundEnded) for fact in list(live.facts))


def wait_until(so: Callable[[], bool], limit_s: float = 60.0) -> bool:
    until = time.monotonic() + limit_s
    while not so() and time.monotonic() < until:
        time.sleep(0.01)
    return so()


# --- processes


def chaos_config(preset: str, **more: object) -> RunConfig:
    """Six clients, and waves long enough that something happens in each."""
    settings: dict[str, object] = {
        "run__rounds": 8,
        "run__clients": 6,
        "run__grace_s": 120,
        "client__wave": "{ steps = 25 }",
        "model__args": "{ hidden = [64], batch_norm = true, dropout = 0.2 }",
        "eval__every": 4,
        "server__alignment": "{ epochs = 2 }",
    }
    return make_config(preset, **(settings | more))


def disturb(run: Federation, relays: Sequence[Relay], faults: Sequence[str], seed: int) -> None:
    """All of these, while the run is under way; spread over its rounds, so that none is left when it ends."""
    adversary = Adversary(relays, seed)
    for number, fault in enumerate(faults):
        run.wait_for(number * (run.rounds - 2) // len(faults))
        if fault == "server kill":
            run.kill_server()
            time.sleep(adversary.random.uniform(0.0, 0.5))
            run.resume()
        elif fault == "client kill":
            run.kill_client(adversary.random.randrange(len(relays)))
        else:
            adversary.strike(fault)
        time.sleep(adversary.random.uniform(0.02, 0.2))


def assert_once_each(run: Federation, config: RunConfig) -> None:
    """The run is the undisturbed one: its bits, and every batch once."""
    summary = run.summary()
    assert summary["finished"]
    assert summary["weights_sha256"] == sha_of(config)
    trained = run.trained()
    assert len(trained) == len(set(trained)), "no batch counts twice"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_dies_or_breaks_the_result_is_that_of_an_undisturbed_run(
    preset: str, tmp_path: Path, faults: Faults
) -> None:
    """Links break, the server and clients are killed; whoever is lost is waited for."""
    config = chaos_config(preset, run__on_lost='"redo"')
    seed = sorted(PRESETS).index(preset)
    kills = ["server kill", "client kill"] * 2
    with federation_over(config, tmp_path, faults) as (run, relays):
        disturb(run, relays, injected := plan(seed, each=5, also=kills), seed)
        assert_once_each(run, config)
    assert_hit(faults, injected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["sequential", "splitfed_v2", "locfedmix"])
def test_links_and_servers_cost_nothing_where_lost_clients_are_not_waited_for(
    preset: str, tmp_path: Path, faults: Faults
) -> None:
    config = chaos_config(preset)
    assert config.run.on_lost == "drop"
    with federation_over(config, tmp_path, faults) as (run, relays):
        disturb(run, relays, injected := plan(20, each=5, also=["server kill"] * 2), 20)
        assert_once_each(run, config)
        assert not any(line["event"] == "client_left" for line in run.lines())
    assert_hit(faults, injected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["parallel", "splitfed_v1", "sequential"])
def test_killed_clients_cost_exactly_their_batches_under_drop(preset: str, tmp_path: Path, faults: Faults) -> None:
    """A round that a client is lost in is cut short for it, not riddled; the next waits for it, as it was told to."""
    config = chaos_config(preset, run__min_clients=6)
    with federation_over(config, tmp_path, faults) as (run, relays):
        disturb(run, relays, injected := plan(30, each=5, also=["client kill"] * 3), 30)
        assert run.summary()["finished"]
    assert_hit(faults, injected)
    trained = run.trained()
    assert len(trained) == len(set(trained)), "no batch counts twice"
    steps: dict[tuple[str, int], list[int]] = {}
    for line in trained:
        client, number, _wave, step = line.split()
        steps.setdefault((client, int(number)), []).append(int(step))
    lost = lost_in(run.lines())
    assert lost, "no kill fell into a run"
    for number in range(config.run.rounds):
        for n in range(config.run.clients):
            found = steps.get((f"c{n}", number), [])
            assert found == list(range(len(found)))
            assert len(found) == config.client.wave.steps or (f"c{n}", number) in lost, (f"c{n}", number, len(found))


def lost_in(lines: Sequence[dict]) -> Counter[tuple[str, int]]:
    """Which clients left in which rounds, from 0."""
    lost, over = Counter[tuple[str, int]](), 0
    for line in lines:
        over += line["event"] == "round"
        if line["event"] == "client_left":
            lost[line["client"], over] += 1
    return lost
