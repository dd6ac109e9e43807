"""How many faults the tests injected, and how many their runs survived: the table at the end of `make chaos`.

A test counts what it does when it has done it. What it did was survived if the test passed; else it is lost.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping

KINDS = ("cut", "delay", "bandwidth", "truncate", "black hole", "server kill", "client kill")
PLACES = ("in memory", "real links", "real processes")


class Faults:
    """Those of one test, by place and kind; may be told from any thread."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def tell(self, place: str, kind: str) -> None:
        """One more."""
        assert place in PLACES
        assert kind in KINDS
        with self._lock:
            self.found[place, kind] += 1


def table(faults: Mapping[str, Faults], passed: Collection[str]) -> list[str]:
    """Lines of text, of all tests by their names."""
    total, survived = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for test, injected in faults.items():
        total += injected.found
        survived += injected.found if test in passed else Counter()
    if not total:
        return []
    lines = [f"{'':12}" + "".join(f"{place:>16}" for place in (*PLACES, "survived"))]
    for kind in KINDS:
        counts = [total[place, kind] for place in PLACES]
        lines.append(f"{kind:12}" + "".join(f"{n:16}" for n in (*counts, sum(survived[p, kind] for p in PLACES))))
    sums = [sum(total[place, kind] for kind in KINDS) for place in PLACES]
    lines.append(f"{'all':12}" + "".join(f"{n:16}" for n in (*sums, survived.total())))
    lines.append(f"injected: {total.total()}, survived: {survived.total()}, lost: {total.total() - survived.total()}")
    return lines
