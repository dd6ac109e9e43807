"""The snapshots of a run: when its state is made durable, and the way back to the last one after a client was lost.

Law: between two waves only. A checkpoint that cannot be written costs no training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Protocol

from sl_common.host.descriptors import cause
from sl_common.messages.facts import Fact, WentBack
from sl_common.training.segment import Tree
from sl_server.core.sessions import Sessions
from sl_server.telemetry.metrics import Metrics


class Archive(Protocol):
    """The place where a run's state is made durable."""

    def save(self, number: int, tree: Tree) -> None:
        """Save a snapshot, durable when this returns. Raises OSError; the one before is then still there."""
        ...

    def back(self) -> None:
        """Undo what the run wrote elsewhere since the last `save`."""
        ...


class Durability:
    """The snapshots of one run."""

    def __init__(
        self,
        sessions: Sessions,
        archive: Archive | None,
        *,
        metrics: Metrics,
        on_fact: Callable[[Fact], None],
        warn: Callable[[str], None],
    ) -> None:
        """Without an archive nothing is kept beyond this process."""
        self._sessions = sessions
        self._coordinator = sessions.coordinator
        self._archive = archive
        self._metrics, self._on_fact, self._warn = metrics, on_fact, warn
        self._last: Tree | None = None  # the newest durable snapshot, or the run's beginning; with on_lost = redo alone
        self._saved: int | None = None  # completed waves when the state was last made durable

    def begin(self) -> None:
        """Remember the beginning of the run, unless it was resumed."""
        if self._last is None:
            self._remember(self._sessions.snapshot())

    def resume(self, tree: Tree) -> None:
        """Begin the run from a snapshot."""
        self._remember(tree)
        self._sessions.restore(tree)
        self._saved = self._coordinator.completed_waves
        self._on_fact(WentBack(checkpoint=self._saved))

    @property
    def is_saved(self) -> bool:
        """True if the state as it is between these two waves is durable."""
        return self._saved == self._coordinator.completed_waves

    def save(self) -> None:
        """Make the state durable, or warn that this is not possible."""
        if self._archive is None:
            return
        began, number = time.perf_counter(), self._coordinator.completed_waves
        tree = self._sessions.snapshot()
        try:
            self._archive.save(number, tree)
        except OSError as error:
            self._metrics.checkpoint(None)
            self._warn(f"no checkpoint after wave {number} ({cause(error)}); training goes on")
            return
        self._saved = number
        self._metrics.checkpoint(time.perf_counter() - began)
        self._remember(tree)
        self._sessions.saved()

    def go_back(self, now: float) -> None:
        """Return to the last snapshot; the clients are waited for from `now` on. The caller has dropped their links."""
        assert self._last is not None, "no snapshot was kept"
        self._metrics.rolled_back()
        if self._archive is not None:
            self._archive.back()
        self._sessions.restore(copy.deepcopy(self._last), now)
        number = self._coordinator.completed_waves
        self._on_fact(WentBack(checkpoint=number))
        self._warn(f"a client was lost: back to checkpoint {number}, run.on_lost = redo")

    def _remember(self, tree: Tree) -> None:
        """Keep a copy, as large as the run's state, only where the run may go back to it."""
        if self._coordinator.config.run.on_lost == "redo":
            self._last = copy.deepcopy(tree)
