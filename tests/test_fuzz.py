"""A short, seeded run of tests/fuzz.py; `make fuzz` does over a million inputs, and keeps each target within a limit of memory."""

from __future__ import annotations

import random

import fuzz_port
import pytest
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
    "certificate": {"config error", "taken"},
    "revoked list": {"config error", "taken"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs_end_with_the_typed_refusal(target: str) -> None:
    ended = fuzz(target, FEW.get(target, 300), seed=7)
    assert set(ended) >= EXPECTED.get(target, set())


def test_every_target_has_its_share_of_a_million() -> None:
    assert SIZES.keys() == TARGETS.keys() | {"codecs", "live port"}
    assert sum(SIZES.values()) >= 1_000_000


def test_a_server_under_attack_serves_its_good_clients() -> None:
    sent, ended, _peak = fuzz_port.episode(random.Random(7), rounds=15, most=150)
    assert sent >= 30
    assert {"protocol", "bytes"} <= set(ended)
