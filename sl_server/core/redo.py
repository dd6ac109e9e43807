"""A limit on how often one client may make the run go back: `run.on_lost = "redo"`, `run.redo_limit`. Pure.

Law: no client stops a run. Counts are by shard, as a client that is lost again and again may come under other names. A
client's count is forgotten once a training wave that it finished is durable: going back cannot undo that progress.
"""

from __future__ import annotations

from collections.abc import Iterable


class RedoBudget:
    """The budgets of all clients. They outlive going back; a new process of the server begins with full ones."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._caused: dict[int, int] = {}  # shard -> how often the run went back for it
        self._finished: set[int] = set()  # shards that finished a training wave since the last checkpoint

    def spend(self, shard: int) -> bool:
        """Return True, and count it, if the run may go back for the lost client of this shard."""
        caused = self._caused.get(shard, 0)
        if caused >= self.limit:
            return False
        self._caused[shard] = caused + 1
        return True

    def finished(self, shards: Iterable[int]) -> None:
        """Record that these finished a training wave, which can still be undone."""
        self._finished.update(shards)

    def saved(self) -> None:
        """Record that the finished waves are durable."""
        for shard in self._finished:
            self._caused.pop(shard, None)
        self._finished.clear()

    def went_back(self) -> None:
        """Forget the waves that were finished since the last checkpoint."""
        self._finished.clear()
