"""One wave under way: the clients that train, the batches that wait, the work that is done. Pure.

A message that may not come now is refused with WireError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

from sl_common.errors import WireError
from sl_common.messages.training import Begin, Directive, Done, Smashed
from sl_common.protocol import At
from sl_common.training.segment import Tree
from sl_server.core.claims import MAX_LOSS, Due


@dataclass(kw_only=True, slots=True)
class Wave:
    """Clients go by shard. A client is training until its Done has arrived and its last batch is served.

    The work for one batch does not grow with the number of clients.
    """

    at: At
    directive: Directive
    begins: dict[int, Begin] = field(default_factory=dict)
    training: dict[int, int] = field(
        default_factory=dict
    )  # clients that may still bring a batch -> batches of theirs that were served
    samples: dict[int, int] = field(default_factory=dict)  # |Dᵢ| of each client
    window: int = 1  # most batches of one client that may wait at a time
    cohorts: int = 0
    waiting: dict[int, deque[Smashed]] = field(default_factory=dict)  # in order of arrival
    arrived: dict[int, int] = field(default_factory=dict)  # batches of each client
    rows: dict[int, int] = field(default_factory=dict)  # samples in these batches
    most_rows: dict[int, int] = field(default_factory=dict)  # most samples that a client may bring to be evaluated
    done: dict[int, Done] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)  # clients that left, or were too late
    since: float = 0.0  # time of the last cohort, or of the wave's beginning
    aligning: set[int] = field(default_factory=set)  # clients whose auxiliary networks are being aligned
    losses: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)  # (shard, step) -> mean, samples
    correct: dict[int, int] = field(default_factory=dict)
    playback: dict[int, Iterator[Smashed]] | None = None  # recorded batches that are trained in place of clients

    @property
    def evaluate(self) -> bool:
        """True if this wave evaluates on held-out data."""
        return next((begin.evaluate for begin in self.begins.values()), False)

    def expect(self, client: int, begin: Begin) -> None:
        """Count a client in; in a playback its first recorded batch, if there is one, waits at once."""
        self.begins[client] = begin
        self.training[client] = 0
        if self.playback is not None:
            self._play(client)
            self._retire(client)

    def _play(self, client: int) -> None:
        """Let a client's next recorded batch wait, as if it had arrived."""
        batch = next(self.playback[client], None) if self.playback else None
        if batch is not None:
            self.waiting.setdefault(client, deque()).append(batch)

    def _retire(self, client: int) -> None:
        """End the training of a client that brings nothing more."""
        if client not in self.waiting and (self.playback is not None or client in self.done):
            self.training.pop(client, None)

    def now(self, now: float) -> At:
        """Return the position of the run for the next cohort; `now`: seconds since the run began."""
        return replace(self.at, step=self.cohorts, now=now, since=self.since)

    def owes(self, client: int) -> bool:
        """Return True if this client is expected to speak: none of its batches waits here, and it is not done."""
        if self.playback is not None or client not in self.begins or client in self.gone or client in self.done:
            return False
        return client not in self.waiting and client not in self.aligning

    def take(self, client: int, batch: Smashed) -> None:
        """Let a batch wait that has arrived. Raises WireError if none may come now, or not this one."""
        self._check_in(client, f"batch {batch.step}", batch.round, batch.wave)
        expected = self.arrived.get(client, 0)
        if batch.step != expected:
            raise WireError(f"batch {batch.step} is out of order, expected batch {expected}")
        if (batch.train or batch.needs_grad) == self.evaluate:
            raise WireError(
                f"batch {batch.step} has train={batch.train}, needs_grad={batch.needs_grad} "
                f"in a wave that {'evaluates' if self.evaluate else 'trains'}"
            )
        if not self.evaluate and batch.step >= self.begins[client].steps:
            raise WireError(f"batch {batch.step}, this wave has {self.begins[client].steps} batches")
        under_way = expected - self.training[client]
        if under_way >= self.window:
            raise WireError(f"batch {batch.step} while {under_way} are under way, client.window = {self.window}")
        rows = self.rows.get(client, 0) + len(batch.y)
        if self.evaluate and rows > self.most_rows.get(client, rows):
            raise WireError(
                f"batch {batch.step} makes {rows} samples to evaluate, this client's part of the test set has at most "
                f"{self.most_rows[client]}"
            )
        self.arrived[client], self.rows[client] = expected + 1, rows
        self.waiting.setdefault(client, deque()).append(batch)

    def finish(self, client: int, done: Done, due: Due | None) -> None:
        """Take a client's Done; `due`: the training that it owed. Raises WireError if either does not fit."""
        self._check_in(client, "done", done.round, done.wave)
        begin = self.begins[client]
        if client in self.aligning:
            raise WireError("done before the auxiliary network was aligned")
        self._check_counts(client, done, due)
        if set(done.weights) != set(begin.upload):
            raise WireError(f"done carries weights of {sorted(done.weights)}, begin asked for {sorted(begin.upload)}")
        self.done[client] = done
        self._retire(client)

    def _check_counts(self, client: int, done: Done, due: Due | None) -> None:
        """Raise WireError unless a Done has the numbers that were counted here, or follow from the client's claims."""
        arrived, rows = self.arrived.get(client, 0), self.rows.get(client, 0)
        steps, samples = (arrived, rows) if due is None else (due.steps, due.all_rows)
        if done.steps != steps:
            raise WireError(f"done after {done.steps} batches, this wave has {steps}")
        if due is not None and arrived != len(due.sent):
            raise WireError(
                f"done after sending {arrived} batches, {len(due.sent)} of this wave's {due.steps} cross the cut"
            )
        if due is not None and rows != due.sent_rows:
            raise WireError(
                f"done after sending {rows} samples, {due.samples} an epoch make {due.sent_rows} in this wave"
            )
        if done.samples != samples:
            raise WireError(f"done reports {done.samples} samples, this wave has {samples}")
        most = 0.0 if due is None or len(due.sent) else MAX_LOSS * samples
        if not 0 <= done.loss_sum <= most:  # this refuses NaN, too
            raise WireError(
                f"done reports a loss of {done.loss_sum} over {samples} samples, 0 to {most:g} are possible"
            )

    def snapshot(self) -> Tree:
        """Return what the end of the round needs of an ended wave."""
        done = {client: asdict(said) for client, said in self.done.items()}
        return {"at": asdict(self.at), "samples": self.samples, "losses": self.losses, "done": done}

    @classmethod
    def restored(cls, tree: Tree) -> Wave:
        """Return an ended wave."""
        done = {client: Done(**fields) for client, fields in tree["done"].items()}
        return cls(
            at=At(**tree["at"]), directive=Directive(), samples=tree["samples"], losses=tree["losses"], done=done
        )

    def _check_in(self, client: int, what: str, round: int, wave: int) -> None:
        if client not in self.begins or client in self.gone or client in self.done or self.playback is not None:
            raise WireError(
                f"{what} from a client that has nothing to do in round {self.at.round + 1}, wave {self.at.wave + 1}"
            )
        if (round, wave) != (self.at.round, self.at.wave):
            raise WireError(
                f"{what} is of round {round + 1}, wave {wave + 1}; "
                f"now is round {self.at.round + 1}, wave {self.at.wave + 1}"
            )

    def next_of(self, client: int) -> Smashed:
        """Remove a client's oldest waiting batch, which is served now, and return it."""
        batches = self.waiting[client]
        batch = batches.popleft()
        if not batches:
            del self.waiting[client]
        self.training[client] += 1
        if self.playback is not None:
            self._play(client)
        self._retire(client)
        return batch

    def drop(self, client: int) -> None:
        """Drop a client that left or is too late; its waiting batches are not trained."""
        if client in self.begins and client not in self.done:
            self.gone.add(client)
        self.aligning.discard(client)
        self.waiting.pop(client, None)
        self.training.pop(client, None)
