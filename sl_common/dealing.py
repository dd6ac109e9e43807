"""Division of a client's samples into the batches of an epoch.

Its loader, the server and every estimate use this one count. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LastBatch = Literal["keep", "drop", "merge"]


@dataclass(frozen=True, slots=True)
class Deal:
    """Batches of `batch_size`, and a last one with the remainder.

    `keep`: the last one stays as it is; `drop`: it is left out of each epoch; `merge`: a remainder of one sample joins
    the batch before it, which then has `batch_size` + 1. A remainder without a batch before it stays.
    """

    samples: int
    batch_size: int
    last: LastBatch = "keep"

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(self.samples, self.batch_size)
        if self.last == "drop" or (self.last == "merge" and rest == 1 and whole):
            return whole
        return whole + (rest > 0)

    @property
    def used(self) -> int:
        """Number of samples that an epoch trains on."""
        return self.batches * self.batch_size if self.last == "drop" else self.samples

    def part(self, number: int) -> slice:
        """Return the slice of batch `number` in the epoch's order."""
        start = number * self.batch_size
        return slice(start, self.used if number == self.batches - 1 else start + self.batch_size)

    @property
    def largest(self) -> int:
        """Number of samples in the largest batch; 0 if there is none."""
        if not self.batches:
            return 0
        return max(min(self.batch_size, self.used), self.used - (self.batches - 1) * self.batch_size)

    @property
    def smallest(self) -> int:
        """Number of samples in the smallest batch, which is the last one; 0 if there is none."""
        last = self.used - (self.batches - 1) * self.batch_size
        return 0 if not self.batches else last if self.batches == 1 else min(self.batch_size, last)
