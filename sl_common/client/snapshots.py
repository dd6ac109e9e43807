"""What a client can go back to when the server comes back from a checkpoint: its state as of the newest checkpoints. Pure.

A snapshot is taken when a wave begins, under the number of the newest checkpoint that the server says is durable: what the client has
then is what it had when that checkpoint was made, since checkpoints are made between waves and a client changes only within them.
"""

from __future__ import annotations

from collections.abc import Callable

from sl_common.errors import WireError
from sl_common.training.segment import Tree

KEPT_SNAPSHOTS = 2  # the newest, and the one before it, in case the server's newest is damaged


class Snapshots:
    """Of one client in one run. `save`, `drop` and `save_last` keep a copy outside of this process, if there is to be one."""

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
        self.run = run  # which run they are of
        self._kept = dict(found or {})
        self._save, self._drop, self._save_last = save, drop, save_last
        self.last = last  # what there was when the server was lost, or after the last wave of a process that is gone

    @property
    def numbers(self) -> tuple[int, ...]:
        """The checkpoints that can be gone back to."""
        return tuple(sorted(self._kept))

    def keep(self, number: int, snapshot: Callable[[], Tree]) -> None:
        """A wave begins while this checkpoint is the newest."""
        if number in self._kept:
            return
        self._kept[number] = snapshot()
        self._save(number, self._kept[number])
        for old in self.numbers[:-KEPT_SNAPSHOTS]:
            self._forget(old)

    def wave_over(self, snapshot: Callable[[], Tree]) -> None:
        """What there is now is what the client has until its next wave, even if its process does not live so long."""
        if self._save_last is not None:
            self._save_last(snapshot())

    def back_to(self, number: int) -> Tree:
        """What there was at this checkpoint. Raises WireError if it is not there."""
        if number not in self._kept:
            raise WireError(f"begin says to go back to checkpoint {number}, this client has {list(self.numbers)}")
        return self._kept[number]

    def forget_after(self, number: int) -> None:
        """The server's newest checkpoint has this number: it went back, and later ones never happened."""
        for later in [n for n in self.numbers if n > number]:
            self._forget(later)

    def _forget(self, number: int) -> None:
        del self._kept[number]
        self._drop(number)
