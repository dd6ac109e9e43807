"""How often one client may make everybody go back to a checkpoint (`run.on_lost = "redo"`, `run.redo_limit`). Pure.

Law: no client stops a run. It is counted by shard, for who flaps may come under other names. What a client has caused is forgotten once
a training wave that it finished is durable: going back cannot undo that progress.
"""

from __future__ import annotations

from collections.abc import Iterable


class RedoBudget:
    """Of all clients. It outlives going back; a new process of the server begins with full ones."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._caused: dict[int, int] = {}  # by shard
        self._finished: set[int] = set()  # a training wave since the last checkpoint

    def spend(self, shard: int) -> bool:
        """Its client was lost: whether the run goes back for it."""
        caused = self._caused.get(shard, 0)
        if caused >= self.limit:
            return False
        self._caused[shard] = caused + 1
        return True

    def finished(self, shards: Iterable[int]) -> None:
        """These finished a training wave; it can still be undone."""
        self._finished.update(shards)

    def saved(self) -> None:
        """All that was finished is durable."""
        for shard in self._finished:
            self._caused.pop(shard, None)
        self._finished.clear()

    def went_back(self) -> None:
        """What was finished since the last checkpoint never happened."""
        self._finished.clear()
