"""Crashes at every step that a writer takes towards the disk, and a loss of power that keeps what was made durable alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STEPS = ("fsync", "replace", "rename", "link", "unlink", "pwrite", "ftruncate", "rmdir")


class Killed(BaseException):
    """This process is gone: nothing catches it, and nothing that it does afterwards reaches the disk."""


class Steps:
    """Counts the steps, and fails the one with the number `at` and all after it."""

    def __init__(self, at: int | None) -> None:
        self.at, self.taken = at, 0

    def step(self) -> None:
        """One more."""
        if self.at is not None and self.taken >= self.at:
            raise Killed
        self.taken += 1


@contextmanager
def steps(at: int | None = None) -> Iterator[Steps]:
    """Count this process's steps towards the disk, or let it die before the step with this number (from 0)."""
    counted = Steps(at)
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, _counted(getattr(os, name), counted))
        yield counted


def _counted(call: Callable[..., object], counted: Steps) -> Callable[..., object]:
    def step(*args: object, **more: object) -> object:
        counted.step()
        return call(*args, **more)

    return step


def every_crash(act: Callable[[], object], begin_again: Callable[[], object]) -> Iterator[int]:
    """For each step of `act`, in order: begin again, act, and die before that step; after the last, act to the end."""
    begin_again()
    with steps() as counted:
        act()
    for at in range(counted.taken):
        begin_again()
        with steps(at):
            try:
                act()
            except Killed:
                pass
            else:
                raise AssertionError(f"step {at} of {counted.taken} was never taken")
        yield at


def copied(source: Path, to: Path) -> None:
    """The folder `to` is what `source` is, and nothing else."""
    if to.exists():
        for path in sorted(to.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    to.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
