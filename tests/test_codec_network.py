"""Codecs in real runs: the network adds nothing with any of them, whatever breaks, and training really learns through them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from live import ClientThread, FlakyCarrier, serving
from test_network import BAD_BATCHES, federation, poison, simulated
from world import World, make_config, run_world

from sl_client.data import fashion_mnist
from sl_common.codec import Codec, Deflate, Float8, Link, Mask
from sl_common.config.server_section import Budget
from sl_common.errors import Diverged
from sl_common.messages.facts import ClientLeft, Evaluated
from sl_common.messages.training import Epoch, Smashed
from sl_common.protocol import At
from sl_common.wire import Endpoint
from sl_server.core.recordings import Recordings
from sl_server.simulation.simulation import Simulation

# Every kind in every direction that it is for.
LINKS: dict[str, dict[str, str]] = {
    "float16": {"up": '{ kind = "float16" }', "down": '{ kind = "float16" }', "state": '{ kind = "float16" }'},
    "bfloat16": {"up": '{ kind = "bfloat16" }', "down": '{ kind = "bfloat16" }', "state": '{ kind = "bfloat16" }'},
    "float8": {"up": '{ kind = "float8" }', "down": '{ kind = "float8" }', "state": '{ kind = "float8" }'},
    "ocp": {"up": '{ kind = "float8", format = "e4m3" }', "down": '{ kind = "float8", format = "e5m2" }'},
    "uniform": {
        "up": '{ kind = "uniform", bits = 4 }',
        "down": '{ kind = "uniform" }',
        "state": '{ kind = "uniform" }',
    },
    "stochastic": dict.fromkeys(("up", "down", "state"), '{ kind = "uniform", rounding = "stochastic" }'),
    "mask": dict.fromkeys(("up", "down", "state"), '{ kind = "mask", r = 0.5, b = 4 }'),
    "topk": {"up": '{ kind = "topk", r = 0.5 }', "down": '{ kind = "topk", r = 0.5 }'},
    "randtopk": {"up": '{ kind = "randtopk", r = 0.5 }', "down": '{ kind = "masked" }'},
    "masked": {"up": '{ kind = "mask" }', "down": '{ kind = "masked", of = { kind = "float8" } }'},
    "deflate": dict.fromkeys(("up", "down", "state"), '{ kind = "deflate", of = { kind = "uniform" } }'),
    "feedback": dict.fromkeys(("down", "state"), '{ kind = "feedback", of = { kind = "uniform", bits = 4 } }'),
}


def config_with(link: dict[str, str], preset: str = "splitfed_v1", **options: object):
    return make_config(preset, **{f"codec__{direction}": codec for direction, codec in link.items()}, **options)


@pytest.mark.parametrize("name", LINKS)
def test_real_streams_that_break_end_with_the_simulators_bits(name: str) -> None:
    config = config_with(LINKS[name], run__clients=2)
    with serving(config) as live:
        clients = [ClientThread(live.address, lambda server: FlakyCarrier(server, 7)) for _ in range(2)]
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None, None]
    assert live.sample("sl_reconnects_total") >= 2
    assert live.coordinator.weights_sha256() == simulated(config).coordinator.weights_sha256()


def test_processes_end_with_the_simulators_bits(tmp_path: Path) -> None:
    config = config_with({**LINKS["randtopk"], "state": LINKS["feedback"]["state"]})
    assert federation(config, tmp_path / "run")["weights_sha256"] == simulated(config).coordinator.weights_sha256()


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("every", [3, 5])
def test_any_timing_and_any_cut_give_the_same_bits(name: str, every: int) -> None:
    """What is drawn and what feedback remembers does not depend on when things arrive, or how often."""
    config = config_with(LINKS[name], "sequential" if every == 3 else "parallel", run__clients=2)
    world = run_world(config, seed=every, cut_every=every)
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished
    assert world.coordinator.weights_sha256() == simulated(config).coordinator.weights_sha256()


def test_a_client_whose_activations_are_not_finite_leaves_and_the_others_go_on() -> None:
    """A codec that cannot carry NaN raises on the side whose fault it is, and the server need not wait for its silence."""
    config = config_with(LINKS["float8"], "parallel", client__wave="{ steps = 4 }")
    change, _ = BAD_BATCHES["nan"]
    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), poison(change)(live.address)]
        for client in clients:
            client.join(60)
    assert [client.bye.finished for client in clients[:2]] == [True, True]
    assert isinstance(clients[2].error, Diverged)
    (left,) = [fact for fact in live.facts if isinstance(fact, ClientLeft)]
    assert "codec float8: a tensor (32, 16) to be encoded holds NaN or Inf" in left.reason


def test_two_clients_draw_differently() -> None:
    world = World(config_with(LINKS["randtopk"], run__clients=2), 0)
    draws = [world.join().session.endpoint for _ in range(2)]
    same = Smashed(step=0, z=torch.ones(4, 16), y=torch.zeros(4, dtype=torch.int64))
    assert draws[0]._codings.of_sent(same).draw != draws[1]._codings.of_sent(same).draw


@pytest.mark.parametrize("codec", [Float8(), Mask(), Deflate(of=Mask())], ids=repr)
def test_what_a_gate_records_stays_encoded(codec: Codec) -> None:
    """A recorded batch costs what the wire cost, and plays back as it came."""
    link = Link(up=codec)
    client, server = (Endpoint(side, link=link, limit_bytes=1 << 20) for side in ("client", "server"))
    z = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0)).relu()
    sent = Smashed(step=0, z=z, y=torch.zeros(8, dtype=torch.int64), needs_grad=False)
    (heard,) = (server.feed(frame.data).message for frame in client.pack(sent))
    recordings = Recordings(link, Budget())
    recordings.keep(0, heard, Epoch())
    ((packed,),) = ([one.packed for one in kept] for kept in recordings._kept.values())
    assert packed.layout.nbytes == len(packed.data) < z.numel() * 4 / 3
    (played,) = recordings.play(0, At(seed=0, round=0, rounds=1))
    assert torch.equal(played.z, heard.z)


# --- training really uses them


def accuracy(link: dict[str, str]) -> float:
    config = config_with(
        link,
        "parallel",
        run__rounds=3,
        run__clients=4,
        data__name='"fashion-mnist"',
        data__batch_size=64,
        model__name='"mlp"',
        model__args="{ hidden = [128, 64] }",
        client__wave="{ epochs = 1 }",
        client__optimizer='{ kind = "adam", lr = 1e-3 }',
        server__optimizer='{ kind = "adam", lr = 1e-3 }',
        eval__every=0,
    )
    facts = Simulation(config).run()
    (found,) = [fact for fact in facts if isinstance(fact, Evaluated)]
    return found.accuracy


@pytest.mark.skipif(not fashion_mnist.SYSTEM.is_dir(), reason="Fashion-MNIST is not on this machine")
def test_compressed_training_is_within_a_point_of_uncompressed() -> None:
    """`parallel`, four clients, three epochs of Fashion-MNIST; `python tests/test_codec_network.py` prints the numbers."""
    plain = accuracy({})
    assert plain > 0.82
    assert accuracy(dict.fromkeys(("up", "down"), '{ kind = "float8" }')) > plain - 0.01
    assert accuracy({"up": '{ kind = "mask", r = 0.99, b = 2 }'}) > plain - 0.01


if __name__ == "__main__":
    for name, link in {
        "uncompressed": {},
        "float8 both ways": dict.fromkeys(("up", "down"), '{ kind = "float8" }'),
        "mask r=0.99 b=2 up": {"up": '{ kind = "mask", r = 0.99, b = 2 }'},
    }.items():
        print(f"{name}: {accuracy(link):.2%}")
