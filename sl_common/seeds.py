"""Randomness is an argument: every draw is seeded by its purpose, so nothing depends on the order of events."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Draw = tuple[int | str, ...]  # name of one draw: the arguments of seed_of, not hashed yet


def seed_of(*what: int | str) -> int:
    """Return a 63-bit seed of (run.seed, purpose, round, shard, step, …).

    Equal arguments give equal seeds on any machine.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in what)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(*what: int | str) -> np.random.Generator:
    """Return a fresh NumPy generator (PCG64) for one draw."""
    return np.random.Generator(np.random.PCG64(seed_of(*what)))


def torch_generator(*what: int | str) -> torch.Generator:
    """Return a fresh CPU torch generator for one draw."""
    return torch.Generator().manual_seed(seed_of(*what))
