"""One wave under way: which clients train, which batches wait, what was served. Pure; refuses what may not come now."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from sl_common.errors import WireError
from sl_common.messages import Begin, Directive, Done, Smashed
from sl_common.protocol import At


@dataclass(kw_only=True, slots=True)
class Wave:
    """Clients go by shard. A client is training until its Done is here and its last batch is served."""

    at: At
    directive: Directive
    begins: dict[int, Begin]
    samples: dict[int, int] = field(default_factory=dict)  # |Dᵢ| of each client
    cohorts: int = 0
    waiting: dict[int, deque[Smashed]] = field(default_factory=dict)  # in order of arrival
    served: dict[int, int] = field(default_factory=dict)
    came: dict[int, int] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    aligning: set[int] = field(default_factory=set)  # clients whose auxiliary networks are being aligned
    losses: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)  # (shard, step) -> mean, samples
    correct: dict[int, int] = field(default_factory=dict)
    playback: dict[int, Iterator[Smashed]] | None = None  # recorded batches in place of clients, who hear nothing

    @property
    def evaluate(self) -> bool:
        """Held-out data, in evaluation mode: all of them, or nobody."""
        return any(begin.evaluate for begin in islice(self.begins.values(), 1))

    @property
    def training(self) -> dict[int, int]:
        """Clients that may still bring a batch, and how many of theirs were served."""
        return {
            client: self.served.get(client, 0)
            for client in self.begins
            if client in self.waiting or (self.playback is None and client not in self.gone and client not in self.done)
        }

    def play(self, client: int) -> None:
        """Put a client's next recorded batch where an arrived one would wait."""
        batch = next(self.playback[client], None) if self.playback else None
        if batch is not None:
            self.waiting.setdefault(client, deque()).append(batch)

    def now(self, now: float) -> At:
        """Where the run is, for the next cohort."""
        return replace(self.at, step=self.cohorts, now=now)

    def take(self, client: int, batch: Smashed) -> None:
        """A batch came. Raises WireError if none may come, or not this one."""
        self._check_in(client, f"batch {batch.step}", batch.round, batch.wave)
        expected = self.came.get(client, 0)
        if batch.step != expected:
            raise WireError(f"batch {batch.step} is out of order, expected batch {expected}")
        if (batch.train or batch.needs_grad) == self.evaluate:
            raise WireError(
                f"batch {batch.step} has train={batch.train}, needs_grad={batch.needs_grad} in a wave that {'evaluates' if self.evaluate else 'trains'}"
            )
        if not self.evaluate and batch.step >= self.begins[client].steps:
            raise WireError(f"batch {batch.step}, this wave has {self.begins[client].steps} batches")
        self.came[client] = expected + 1
        self.waiting.setdefault(client, deque()).append(batch)

    def finish(self, client: int, done: Done, batch_size: int) -> None:
        """A client says Done. Raises WireError if it is not in the wave or left out work."""
        self._check_in(client, "done", done.round, done.wave)
        begin = self.begins[client]
        if client in self.aligning:
            raise WireError("done before the auxiliary network was aligned")
        if not begin.evaluate and begin.directive.send and done.steps != begin.steps:
            raise WireError(f"done after {done.steps} batches, this wave has {begin.steps}")
        if not math.isfinite(done.loss_sum) or (done.loss_sum and not 0 < done.samples <= begin.steps * batch_size):
            raise WireError(
                f"done reports a loss of {done.loss_sum} over {done.samples} samples in {begin.steps} batches of at most {batch_size}"
            )
        if set(done.weights) != set(begin.upload):
            raise WireError(f"done carries weights of {sorted(done.weights)}, begin asked for {sorted(begin.upload)}")
        self.done[client] = done

    def _check_in(self, client: int, what: str, round: int, wave: int) -> None:
        if client not in self.begins or client in self.gone or client in self.done or self.playback is not None:
            raise WireError(
                f"{what} from a client that has nothing to do in round {self.at.round}, wave {self.at.wave}"
            )
        if (round, wave) != (self.at.round, self.at.wave):
            raise WireError(
                f"{what} is of round {round}, wave {wave}; now is round {self.at.round}, wave {self.at.wave}"
            )

    def next_of(self, client: int) -> Smashed:
        """Take a client's oldest waiting batch."""
        batches = self.waiting[client]
        batch = batches.popleft()
        if not batches:
            del self.waiting[client]
        self.served[client] = self.served.get(client, 0) + 1
        if self.playback is not None:
            self.play(client)
        return batch

    def drop(self, client: int) -> None:
        """A client left; what waited of it is not trained."""
        if client in self.begins and client not in self.done:
            self.gone.add(client)
        self.aligning.discard(client)
        self.waiting.pop(client, None)
