"""A short, seeded run of tests/fuzz.py with its budgets for each input; `make fuzz` does over a million inputs, and keeps each target within
a limit of memory."""

from __future__ import annotations

import random

import budget
import fuzz_port
import pytest
from budget import Cost, Meter, OverBudget
from fuzz import SIZES, TARGETS, fuzz

FEW = {"run directory": 60, "config file": 150, "client's snapshot": 100, "session": 200}
EXPECTED = {  # so that the inputs are neither all refused at once nor all taken
    "endpoint": {"wire error", "taken"},
    "session": {"wire error", "refused", "stays"},
    "greeting": {"wire error", "taken"},
    "probe": {"refused", "answered"},
    "event log": {"wire error", "read"},
    "config file": {"config error", "taken"},
    "checkpoint": {"data error", "read"},
    "run directory": {"config error", "read"},
    "client's snapshot": {"left out"},
    "past run": {"config error", "read"},
    "weights": {"config error", "read"},
    "data files": {"data error", "read"},
    "samples": {"data error", "read"},
    "certificate": {"config error", "taken"},
    "revoked list": {"config error", "taken"},
    "inputs": {"config error", "taken"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs_end_with_the_typed_refusal_within_their_budget(target: str) -> None:
    fuzz(target, 20, seed=8)  # whatever is loaded on first use
    ended, meter = fuzz(target, FEW.get(target, 300), seed=7)
    assert set(ended) >= EXPECTED.get(target, set())
    assert meter.slowest is not None
    assert not meter.slowest.cost.over


def test_every_target_has_its_share_of_a_million() -> None:
    assert SIZES.keys() == TARGETS.keys() | {"live port"}
    assert sum(SIZES.values()) >= 1_000_000


def test_a_server_under_attack_serves_its_good_clients() -> None:
    sent, ended, _peak = fuzz_port.episode(random.Random(7), rounds=15, most=150)
    assert sent >= 30
    assert {"protocol", "bytes"} <= set(ended)


# --- the budget


def _spin(seconds: float) -> str:
    began = budget.time.process_time()
    while budget.time.process_time() - began < seconds:
        pass
    return "read"


def test_an_input_that_is_slow_three_times_is_over_its_budget() -> None:
    with pytest.raises(OverBudget, match=r"3 bytes, 616263…: .* ms, .* three times; allowed are 50.0 ms, 64.0 MiB"):
        Meter().run(0, b"abc", lambda: _spin(budget.CPU_S * 1.2))


def test_an_input_that_is_slow_once_is_not() -> None:
    waits = iter((budget.CPU_S * 1.2, 0.0, 0.0))
    meter = Meter()
    assert meter.run(0, b"abc", lambda: _spin(next(waits))) == "read"
    assert meter.slowest is not None
    assert meter.slowest.cost.cpu_s < budget.CPU_S


def test_an_input_that_takes_much_memory_is_over_its_budget_although_others_took_it_before() -> None:
    kept = bytearray(2 * budget.MEMORY)
    del kept
    with pytest.raises(OverBudget, match="MiB, three times"):
        Meter().run(0, b"", lambda: str(len(bytearray(b"x") * (budget.MEMORY + (2 << 20)))))


def test_the_costliest_inputs_are_known_by_their_number() -> None:
    meter = Meter()
    for number, seconds in enumerate((0.0, 0.004, 0.0)):
        meter.run(number, bytes(number), lambda: _spin(seconds))  # noqa: B023  (called at once)
    assert meter.slowest is not None
    assert (meter.slowest.number, meter.slowest.nbytes, meter.slowest.cost.over) == (1, 1, False)
    assert Cost(0.0, budget.MEMORY + 1).over
