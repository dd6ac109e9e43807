"""The segments of one participant, by part."""

from __future__ import annotations

from collections.abc import Callable

from sl_common.errors import WireError
from sl_common.tensors import StateDict
from sl_common.training.segment import Segment, Tree


class Bank:
    """The segments of one participant, by part; on the server each client may have its own copy of a part.

    A copy is made when its client first needs one, from the weights that were last loaded for all.
    """

    def __init__(self, make: dict[str, Callable[[], Segment]], per_client: frozenset[str] = frozenset()) -> None:
        self._make = make
        self._per_client = per_client
        self._shared = {part: make_segment() for part, make_segment in make.items()}
        self._copies: dict[tuple[str, int], Segment] = {}
        self._used: dict[Segment, None] = {}  # segments used since the last `run_deferred_step`, in order

    def __contains__(self, part: str) -> bool:
        return part in self._make

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts held here."""
        return tuple(self._make)

    def get(self, part: str, client: int | None = None) -> Segment:
        """Return the segment of a part: the client's own copy if each client has one."""
        segment = self._find(part, client)
        self._used[segment] = None
        return segment

    def _find(self, part: str, client: int | None) -> Segment:
        if part not in self._per_client or client is None:
            return self._shared[part]
        key = (part, client)
        if key not in self._copies:
            self._copies[key] = self._make[part]()
            self._copies[key].load(self._shared[part].state(), part)
        return self._copies[key]

    def copies(self, part: str) -> dict[int, Segment]:
        """Return the per-client copies of a part by client; empty if there is one segment for all."""
        return {client: segment for (p, client), segment in sorted(self._copies.items()) if p == part}

    def is_per_client(self, part: str) -> bool:
        """Return True if every client has its own copy of this part here."""
        return part in self._per_client

    def load(self, part: str, state: StateDict) -> None:
        """Load weights into a part and into every copy of it."""
        for segment in [self._shared[part], *self.copies(part).values()]:
            segment.load(state, part)

    def run_deferred_step(self) -> None:
        """Take all deferred steps.

        Visits only copies used since the last call, so the cost does not grow with the number of clients.
        """
        used, self._used = self._used, {}
        for segment in used:
            segment.run_deferred_step()

    def forget(self, client: int) -> None:
        """Drop a client's copies."""
        for key in [key for key in self._copies if key[1] == client]:
            del self._copies[key]

    def snapshot(self) -> Tree:
        """Return the snapshots of all segments."""
        return {
            "shared": {part: segment.snapshot() for part, segment in self._shared.items()},
            "copies": {key: segment.snapshot() for key, segment in self._copies.items()},
        }

    def restore(self, tree: Tree) -> None:
        """Restore a snapshot of a bank like this one. Raise WireError if it has other parts."""
        if tree["shared"].keys() != self._shared.keys() or {part for part, _ in tree["copies"]} - self._per_client:
            raise WireError(f"a snapshot of {sorted(tree['shared'])}, this side holds {sorted(self._shared)}")
        for part, snapshot in tree["shared"].items():
            self._shared[part].restore(snapshot)
        self._copies, self._used = {}, {}
        for (part, client), snapshot in tree["copies"].items():
            self.get(part, client).restore(snapshot)
