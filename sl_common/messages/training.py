"""Messages between a client and the server during training. All values are frozen.

Law: a message holds nothing about frames, bytes or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sl_common.codec.packed import Packed
from sl_common.holdings import Build, DataSet
from sl_common.messages.inference import InferenceReply, InferenceRequest
from sl_common.tensors import StateDict

MOST_LATE = 8  # waves that may continue without a client; their messages wait for it


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """Record all batches of this wave, and discard earlier recordings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Newest:
    """Record the newest batches: the fewest that hold this many samples."""

    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Directive:
    """Request of a gate for one wave. A client that must not send gets no replies: the server uses recorded batches."""

    send: bool = True  # send batches at all
    update: bool = True  # update the lower segment, which needs gradients
    record: Epoch | Newest | None = None  # batches that the server records; never on the wire
    align: bool = False  # the client waits for its newly aligned auxiliary network after its first batch
    warm: bool = False  # the client itself trains the auxiliary network


# --- sent by a client


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The client has built its segment and loaded its data."""

    samples: int
    batches: int  # in one epoch
    snapshots: tuple[int, ...] = ()  # checkpoints of the run that this client can restore
    intact: bool = False  # the client also has its state from when the server was lost
    data: DataSet | None = None  # None: not stated, so nothing is compared
    builds: tuple[Build, ...] = ()  # of the parts that the client holds
    torch: str = ""  # version


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Smashed:
    """Activations and labels of one batch at the cut."""

    step: int  # within the wave, from 0
    z: Tensor  # (B, *cut)
    y: Tensor  # (B,) int64
    round: int = 0
    wave: int = 0
    train: bool = True
    needs_grad: bool = True
    packed: Packed | None = None  # z in its encoded form, as received; None on the sending side


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Done:
    """The client has finished its wave."""

    round: int
    wave: int
    steps: int
    samples: int
    loss_sum: float = 0.0  # over `samples`, where the client computed the loss itself
    weights: Mapping[str, StateDict] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alive:
    """Sign of life of a client that is still computing."""

    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Leave:
    """The client leaves the run."""

    reason: str


# --- sent by the server


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """Configuration of the run, and the client's name and shard."""

    config: str  # JSON
    client: str
    shard: int
    shards: int
    run: str = ""  # name of the run, the same after a restart of the server


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Begin:
    """Start of a wave for one client."""

    round: int
    rounds: int
    wave: int = 0
    wave_size: int = 1
    evaluate: bool = False
    steps: int = 0
    first: int = 0  # number of the wave's first batch since the run began
    lr: float = 0.0
    weights: Mapping[str, StateDict] = field(default_factory=dict)
    upload: tuple[str, ...] = ()
    directive: Directive = Directive()
    slice: int = 0
    slices: int = 1
    samples: int = 0  # of the test set; 0 = all
    checkpoint: int = 0  # number of the newest durable checkpoint, to save the state before this wave under; 0 = none
    restore: int = 0  # checkpoint whose state to restore first; 0 = none
    intact: bool = False  # first restore the state from when the server was lost


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gradient:
    """Reply to one Smashed. There is exactly one for each."""

    step: int
    loss: float  # mean over this client's samples
    correct: int = 0  # evaluation: samples whose largest logit is the label
    dz: Tensor | None = None  # (B, *cut)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Aligned:
    """A client's auxiliary network after its alignment in this wave. As an event: the alignment has ended."""

    round: int
    wave: int
    weights: Mapping[str, StateDict]
    before: float  # mean squared error per sample of the estimated cut gradient, in the first epoch
    after: float  # in the last one


@dataclass(frozen=True, kw_only=True, slots=True)
class Late:
    """The wave continued without this client, and its batches of that wave are ignored.

    The next Begin follows later.
    """

    round: int
    wave: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bye:
    """The run has ended for this client."""

    reason: str
    finished: bool


ToServer = Ready | Smashed | Done | Alive | Leave
ToClient = Welcome | Begin | Gradient | Aligned | Late | Bye
Message = ToServer | ToClient | InferenceRequest | InferenceReply
