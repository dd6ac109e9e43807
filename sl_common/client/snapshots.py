"""A client's states at the newest checkpoints, which it restores when the server restarts from one. Pure.

A snapshot is taken when a wave begins, under the number of the newest durable checkpoint. It equals the state when that
checkpoint was made, since checkpoints are made between waves and a client changes only within them.
"""

from __future__ import annotations

from collections.abc import Callable

from sl_common.errors import WireError
from sl_common.training.segment import Tree

KEPT_SNAPSHOTS = 2  # the newest, and the one before it in case the server's newest checkpoint is damaged


class Snapshots:
    """Snapshots of one client in one run.

    `save`, `drop` and `save_last` maintain a copy outside of this process, if any.
    """

    def __init__(
        self,
        run: str,
        found: dict[int, Tree] | None = None,
        last: Tree | None = None,
        *,
        save: Callable[[int, Tree], None] = lambda _number, _tree: None,
        drop: Callable[[int], None] = lambda _number: None,
        save_last: Callable[[Tree], None] | None = None,
    ) -> None:
        self.run = run  # name of the run
        self._kept = dict(found or {})
        self._save, self._drop, self._save_last = save, drop, save_last
        self.last = last  # state when the server was lost, or after the last wave of an earlier process

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the checkpoints whose state can be restored."""
        return tuple(sorted(self._kept))

    def keep(self, number: int, snapshot: Callable[[], Tree]) -> None:
        """Save the state under the number of a checkpoint, unless there is one already."""
        if number in self._kept:
            return
        self._kept[number] = snapshot()
        self._save(number, self._kept[number])
        for old in self.numbers[:-KEPT_SNAPSHOTS]:
            self._drop_one(old)

    def save_after_wave(self, snapshot: Callable[[], Tree]) -> None:
        """Save the state outside of this process, which may end before the next wave."""
        if self._save_last is not None:
            self._save_last(snapshot())

    def state_at(self, number: int) -> Tree:
        """Return the state at this checkpoint. Raises WireError if there is none."""
        if number not in self._kept:
            raise WireError(f"begin says to go back to checkpoint {number}, this client has {list(self.numbers)}")
        return self._kept[number]

    def drop_after(self, number: int) -> None:
        """Drop the snapshots after this number, because the server went back to it."""
        for later in [n for n in self.numbers if n > number]:
            self._drop_one(later)

    def _drop_one(self, number: int) -> None:
        del self._kept[number]
        self._drop(number)
