"""Facts that the coordinator reports; shells turn them into metrics, progress bars and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientJoined:
    """A client has been assigned a shard."""

    client: str
    shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientReady:
    """A client is ready to train."""

    client: str
    shard: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLeft:
    """A client has left; its unfinished work does not count."""

    client: str
    shard: int
    reason: str
    was_ready: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLate:
    """A wave continued without a client that was too slow; the client takes part in the next one."""

    client: str
    round: int
    wave: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientsDoubtful:
    """A difference between clients' data or builds that the run accepts, but that the operator should know."""

    clients: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientAway:
    """A client's stream broke, and it may still return. Only the shell that owns the streams reports this."""

    client: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientBack:
    """A client continues where it was, on a new stream."""

    client: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WentBack:
    """The run continues from a checkpoint: in a new process, or because a client was lost. All clients join again."""

    checkpoint: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RedoSpent:
    """A lost client causes no more rollbacks: it has caused `limit` of them without progress between."""

    client: str
    shard: int
    limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveBegun:
    """A wave has begun on its clients."""

    round: int
    rounds: int
    wave: int
    clients: tuple[str, ...]
    steps: int  # training batches, summed over the clients
    evaluate: bool
    held_out: int = 0  # samples to evaluate, summed over the clients; 0 if not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The head trained on one client's batch. A cohort reports one for each of its batches."""

    client: str
    shard: int
    round: int
    wave: int
    step: int
    samples: int
    loss: float
    crc32: str  # of the activations as decoded: tensors.checksum


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchEvaluated:
    """One client's batch of held-out samples was evaluated."""

    client: str
    round: int
    wave: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxAligned:
    """A client's auxiliary network was aligned with the head. Errors are mean squared errors per sample."""

    client: str
    round: int
    samples: int
    before: float  # error in the first epoch
    after: float  # error in the last epoch
    took_s: float  # measured by the shell that ran it


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientDone:
    """A client finished its wave."""

    client: str
    round: int
    wave: int
    steps: int
    samples: int
    evaluate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundEnded:
    """All waves of a round have ended and the weights are merged."""

    round: int
    loss: float | None  # mean over the samples trained on; None if there were none
    samples: int
    clients: int  # clients that finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Evaluation result of one client's slice or model."""

    samples: int
    correct: int
    loss: float  # mean

    @property
    def accuracy(self) -> float:
        """Correct fraction of the samples."""
        return self.correct / self.samples if self.samples else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Evaluation of the split network on held-out data after a round.

    With one shared network `accuracy` is over all samples. If every client has its own lower segment, it is the mean
    over clients, and `lowest` and `highest` are the extremes.
    """

    round: int
    shared: bool
    accuracy: float
    lowest: float
    highest: float
    loss: float
    samples: int
    clients: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnded:
    """The run has ended; no more training follows."""

    reason: str
    finished: bool


Fact = (
    ClientJoined
    | ClientReady
    | ClientLeft
    | ClientLate
    | ClientsDoubtful
    | ClientAway
    | ClientBack
    | WentBack
    | RedoSpent
    | WaveBegun
    | Trained
    | BatchEvaluated
    | AuxAligned
    | ClientDone
    | RoundEnded
    | Evaluated
    | RunEnded
)
