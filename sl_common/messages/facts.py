"""What the coordinator tells the outside: facts, from which shells make metrics, progress bars and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientJoined:
    """A client has a place."""

    client: str
    shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientReady:
    """A client can train."""

    client: str
    shard: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLeft:
    """A client is gone; what it had not finished does not count."""

    client: str
    shard: int
    reason: str
    was_ready: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLate:
    """A wave went on without a client that was too slow; it takes part again in the next one."""

    client: str
    round: int
    wave: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientsDoubtful:
    """Something about what clients hold that a person should know of, although the run takes it."""

    clients: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientAway:
    """A client's stream broke; it has not left yet. Only the shell that holds the streams can know."""

    client: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientBack:
    """It goes on, on a new stream, where it was."""

    client: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WentBack:
    """The run goes on from a checkpoint: in a new process, or because a client was lost. Its clients come anew."""

    checkpoint: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RedoSpent:
    """A client was lost for which the run does not go back any more: it has caused `limit` rollbacks without getting on."""

    client: str
    shard: int
    limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveBegun:
    """Clients were told to begin."""

    round: int
    rounds: int
    wave: int
    clients: tuple[str, ...]
    steps: int  # training batches of all of them together
    evaluate: bool
    held_out: int = 0  # samples that will be evaluated, by all of them together; 0 if that is not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The head trained on one client's batch; one for each batch of a cohort."""

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
    """Held-out samples of one client went through the network."""

    client: str
    round: int
    wave: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxAligned:
    """A client's auxiliary network was aligned with the head; errors are mean squared ones per sample."""

    client: str
    round: int
    samples: int
    before: float  # in the first epoch
    after: float  # in the last
    took_s: float  # which only the shell that ran it can know


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
    """All waves of a round are over and the weights merged."""

    round: int
    loss: float | None  # mean over the samples trained on; None if there were none
    samples: int
    clients: int  # that finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Evaluation of one client's slice or model."""

    samples: int
    correct: int
    loss: float  # mean

    @property
    def accuracy(self) -> float:
        """Fraction of the samples."""
        return self.correct / self.samples if self.samples else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Held-out data through the split network after a round.

    With one shared network `accuracy` is over all samples; where every client has a lower segment of its own it is the mean over
    clients, and `lowest` and `highest` are theirs.
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
    """Nothing more will be trained."""

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
