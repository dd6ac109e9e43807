"""The wire counters of a real run against each preset's traffic formula, and the terms that a real system adds to it.

The formulas are those of the specs (baselines.md, last table; async_fp8.md g5; locfedmix.md g7): |D| samples of S bytes up, as many down
where a gradient is asked for, weights of each client each way where a round averages or hands over. A real system adds the initial
weights, and those that the evaluation at the end needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from live import ClientThread, serving
from world import make_config

from sl_common.config.presets import PRESETS
from sl_common.network.network import Network

CLIENTS, STEPS, BATCH, CUT = 2, 5, 32, 16
PER_MESSAGE = 260  # bytes of headers, framing and timings of a message, at most


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of a preset: rounds, batches up and gradients down in a wave, parts in every exchange of weights, and how often each way."""

    rounds: int = 2
    up: float = STEPS  # activations of one client in a round, on average
    down: float = STEPS  # gradients
    parts: tuple[str, ...] = ("lower",)
    weights_up: int = 0  # by all clients together
    weights_down: int = CLIENTS  # the initial ones
    aux_down: int = 0  # of auxiliary networks alone


EXPECTED = {
    # handed over through the server: C up and C down a round, and the last client's to the other for the evaluation
    "sequential": Expected(weights_up=2 * CLIENTS, weights_down=2 * CLIENTS + 1),
    "parallel": Expected(),
    "sglr": Expected(),
    # averaged: C up and C down a round, beside the initial ones
    "splitfed_v1": Expected(weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
    "splitfed_v2": Expected(weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
    # A, A, B, C: hand-over in A alone; B's Begin brings the first client the last one's
    "loss_async": Expected(
        rounds=4, up=STEPS * 3 / 4, down=STEPS * 2 / 4, weights_up=2 * CLIENTS, weights_down=2 * CLIENTS + 1
    ),
    "locsplitfed": Expected(down=0, parts=("lower", "aux"), weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
    "locfedsl": Expected(parts=("lower", "aux"), weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
    "locfedmix": Expected(parts=("lower", "aux"), weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
    # one batch of h = 2, and none of the last one alone: ⌊5/2⌋
    "cse_fsl": Expected(
        up=STEPS // 2, down=0, parts=("lower", "aux"), weights_up=2 * CLIENTS, weights_down=3 * CLIENTS
    ),
    # one batch of q = 5, the auxiliary network down when it begins and when it is aligned: only the first round's
    "fsl_sage": Expected(up=1, down=0, weights_up=2 * CLIENTS, weights_down=3 * CLIENTS, aux_down=2 * CLIENTS),
    "fedavg": Expected(up=0, down=0, parts=("lower", "head"), weights_up=2 * CLIENTS, weights_down=3 * CLIENTS),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_real_run_sends_what_the_formula_says(preset: str) -> None:
    want = EXPECTED[preset]
    gate = {"protocol__gate__threshold": 1e300} if preset == "loss_async" else {}
    config = make_config(
        preset,
        run__rounds=want.rounds,
        run__clients=CLIENTS,
        client__wave=f"{{ steps = {STEPS} }}",
        eval__every=0,
        **gate,
    )
    with serving(config) as live:
        clients = [ClientThread(live.address) for _ in range(CLIENTS)]
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * CLIENTS
    network = Network.build(config)
    weights = sum(4 * t.numel() for part in want.parts for t in network.part(part).state_dict().values())
    aux = 0 if network.aux is None else sum(4 * t.numel() for t in network.aux.state_dict().values())
    batches = {"up": want.rounds * CLIENTS * want.up, "down": want.rounds * CLIENTS * want.down}
    tensors = {
        ("up", "smashed"): batches["up"] * BATCH * CUT * 4,
        ("up", "labels"): batches["up"] * BATCH * 8,
        ("down", "gradient"): batches["down"] * BATCH * CUT * 4,
        ("up", "weights"): want.weights_up * weights,
        ("down", "weights"): want.weights_down * weights + want.aux_down * aux,
    }
    payload, wire = live.ledger.payload, live.ledger.wire
    assert {key: payload[key] for key in tensors} == tensors
    for (direction, kind), nbytes in tensors.items():
        messages = want.weights_up + want.weights_down + want.aux_down if kind == "weights" else batches[direction]
        names = 40 * len(network.blocks) * 4 if kind == "weights" else 0  # of tensors, with their headers
        assert nbytes <= wire[direction, kind] <= nbytes + messages * (PER_MESSAGE + names)
