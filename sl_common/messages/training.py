"""The vocabulary: everything a client and the server say to each other, and everything that can happen to the coordinator.

All values are frozen. A message says nothing about frames, bytes or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sl_common.codec.packed import Packed
from sl_common.holdings import Build, DataSet
from sl_common.messages.inference import InferenceReply, InferenceRequest, Lower, Query, Scores
from sl_common.tensors import StateDict

MOST_LATE = 8  # waves that may go on without a client before it is heard of again; their words wait for it
WireKind = Literal["smashed", "labels", "gradient", "weights", "eval", "infer", "control"]
WIRE_KINDS: tuple[WireKind, ...] = ("smashed", "labels", "gradient", "weights", "eval", "infer", "control")


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """Keep all batches of this wave, in place of what was kept before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Newest:
    """Keep the newest batches, as few as hold so many samples."""

    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Directive:
    """What a gate asks in one wave. A client that is not to send hears nothing: the server plays back what it recorded."""

    send: bool = True  # send batches at all
    update: bool = True  # update the lower segment, and so ask for gradients
    record: Epoch | Newest | None = None  # what the server keeps of the batches; never on the wire
    align: bool = False  # after its first batch a client waits for its auxiliary network, aligned anew
    warm: bool = False  # the client trains that auxiliary network itself


# --- what a client says


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The segment is built and the data are loaded."""

    samples: int
    batches: int  # in one epoch
    snapshots: tuple[int, ...] = ()  # checkpoints of the run that this client can go back to
    intact: bool = False  # it also has what it had when the server was lost
    data: DataSet | None = None  # None: it does not say, and nothing is compared
    builds: tuple[Build, ...] = ()  # of the parts that it holds
    torch: str = ""  # the version


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Smashed:
    """One batch at the cut."""

    step: int  # within the wave, from 0
    z: Tensor  # (B, *cut)
    y: Tensor  # (B,) int64
    round: int = 0
    wave: int = 0
    train: bool = True
    needs_grad: bool = True
    packed: Packed | None = None  # z as it came over the wire; None on the side that made it


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Done:
    """The wave is over on this client."""

    round: int
    wave: int
    steps: int
    samples: int
    loss_sum: float = 0.0  # over `samples`, where the client computed the loss itself
    weights: Mapping[str, StateDict] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alive:
    """Still working, nothing to say yet."""

    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Leave:
    """The client goes for good."""

    reason: str


# --- what the server says


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The run and the client's place in it."""

    config: str  # JSON
    client: str
    shard: int
    shards: int
    run: str = ""  # which run this is, across restarts of the server


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
    checkpoint: int = 0  # the newest durable one: keep what you have, before this wave, under its number; 0 = none
    restore: int = 0  # first go back to what you had at this one; 0 = do not
    intact: bool = False  # first take what you had when the server was lost


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gradient:
    """The one reply to one Smashed."""

    step: int
    loss: float  # mean over this client's samples
    correct: int = 0  # evaluation: samples whose largest logit is the label
    dz: Tensor | None = None  # (B, *cut)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Aligned:
    """A client's auxiliary network, aligned anew in this wave; as an event, that the alignment is over."""

    round: int
    wave: int
    weights: Mapping[str, StateDict]
    before: float  # mean squared error per sample of the estimated cut gradient, in the first epoch
    after: float  # in the last one


@dataclass(frozen=True, kw_only=True, slots=True)
class Late:
    """The wave went on without this client; what it sends of it is not trained. The next Begin comes in its time."""

    round: int
    wave: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bye:
    """The server has no more work for this client."""

    reason: str
    finished: bool


# --- what else can happen to the coordinator


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A new life of a client is here; `shard` is the one it asks for."""

    shard: int | None = None
    shards: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A client is gone, and its unfinished work with it."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time, as an event: seconds since the run began."""

    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """The state between two waves is durable; checkpoints are counted from 1 with the waves."""

    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The coordinator went back to a checkpoint: only in event logs."""

    number: int
    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Advanced:
    """The coordinator worked: only in event logs, where it says between which events, and what came of it."""

    said: tuple[MessageDigest, ...] = ()  # digests of the messages that it gave to send
    weights: Mapping[str, str] = field(
        default_factory=dict
    )  # digests by tensor, where a wave or a round has just ended


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageDigest:
    """One message to one client, as an event log holds it: a digest or the value of every field, tensors by their names."""

    client: str
    kind: str
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The run was ended from outside: by its operator, or by an error. Only in event logs."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The entry before this one raised an error in the coordinator. Only in event logs."""

    error: str


ToServer = Ready | Smashed | Done | Alive | Leave
ToClient = Welcome | Begin | Gradient | Aligned | Late | Bye
Message = ToServer | ToClient | InferenceRequest | InferenceReply
Event = ToServer | Joined | Left | Tick | Aligned | Saved
Logged = Event | Advanced | Restored | Stopped | Failed


def kind_of(message: Message) -> WireKind:
    """Under which kind the bytes of this message count; a Smashed's labels count apart."""
    match message:
        case Smashed(train=False, needs_grad=False):
            return "eval"
        case Smashed():
            return "smashed"
        case Gradient(dz=Tensor()):
            return "gradient"
        case Begin(weights=weights) | Done(weights=weights) | Aligned(weights=weights) | Lower(weights=weights) if (
            weights
        ):
            return "weights"
        case Query() | Scores():
            return "infer"
        case _:
            return "control"


def payload_of(message: Message) -> dict[WireKind, int]:
    """Bytes of the tensors in this message if they travelled as float32 (labels, integers, complex numbers and float8 at their own size)."""

    def size(tensor: Tensor) -> int:
        return tensor.numel() * (
            4 if tensor.is_floating_point() and tensor.element_size() > 1 else tensor.element_size()
        )

    kind = kind_of(message)
    match message:
        case Smashed(z=z, y=y):
            return {"eval": size(z) + size(y)} if kind == "eval" else {kind: size(z), "labels": size(y)}
        case Gradient(dz=dz) if dz is not None:
            return {kind: size(dz)}
        case Query(z=tensor) | Scores(scores=tensor):
            return {kind: size(tensor)}
        case Begin(weights=weights) | Done(weights=weights) | Aligned(weights=weights) | Lower(weights=weights):
            return {kind: sum(size(t) for state in weights.values() for t in state.values())}
        case _:
            return {}
