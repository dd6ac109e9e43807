"""Opening of a stream: the client sends Hello, the server answers Greeting or Refusal. These frames have no numbers."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sl_common import __version__
from sl_common.errors import Refused, WireError
from sl_common.names import MAX_NAME, is_name
from sl_common.proto import split_pb2 as pb
from sl_common.wire.bounds import MAX_SENTENCE

WIRE_VERSION = 2  # the first release fixes its bytes; until then they may change, together with tests/golden
LIFE_BYTES = 16
MAX_HELLO = 4096  # bytes
MAX_ANSWER = 1 << 14  # bytes
SLOW_S = 5.0  # silence before a stream broke, from which on its link counts as slow
REFUSED_BY = "sl-refused"  # trailing metadata with a Refusal's code, for a stream that ends before its Hello is read


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """First frame of a client on every stream."""

    life: bytes  # 16 random bytes that identify the client's process
    client: str = ""  # the name that the client asks for; empty: the server chooses one
    received: int = 0
    resume: bool = False
    shard: int | None = None
    shards: int | None = None
    version: int = WIRE_VERSION
    software: str = ""
    stream: int = 0  # number of this stream among those of the process
    slow: bool = False  # the link was found to be slow

    def check_version(self) -> None:
        """Raise Refused unless the client uses the wire version of this side."""
        if self.version != WIRE_VERSION:
            raise Refused(
                "version",
                f"client speaks wire version {self.version} (cutlayer {self.software!r:.80}), "
                f"this server {WIRE_VERSION} (cutlayer {__version__})",
            )

    def to_frame(self) -> bytes:
        """Serialize to a frame."""
        header = pb.Hello(
            version=self.version,
            software=self.software,
            client=self.client,
            life=self.life,
            received=self.received,
            resume=self.resume,
            shard_plus_one=0 if self.shard is None else self.shard + 1,
            shards=self.shards or 0,
            stream=self.stream,
            slow=self.slow,
        )
        return pb.ClientFrame(hello=header).SerializeToString()

    @classmethod
    def from_frame(cls, frame: bytes) -> Hello:
        """Parse a client's first frame. Raises WireError unless it is a well-formed Hello."""
        if len(frame) > MAX_HELLO:
            raise WireError(f"a first frame of {len(frame)} bytes, at most {MAX_HELLO} are allowed")
        try:
            parsed = pb.ClientFrame.FromString(frame)
        except DecodeError as error:
            raise WireError("the first frame is not a protobuf ClientFrame") from error
        if parsed.WhichOneof("header") != "hello" or parsed.seq or parsed.chunk:
            raise WireError(f"a stream opens with hello, not with {parsed.WhichOneof('header') or 'nothing'!r}")
        h = parsed.hello
        if len(h.life) != LIFE_BYTES:
            raise WireError(f"hello.life has {len(h.life)} bytes, must have {LIFE_BYTES}")
        if not is_name(h.client):
            raise WireError(
                f"hello.client must be at most {MAX_NAME} printable characters without '/', got {h.client[:80]!r}"
            )
        return cls(
            life=h.life,
            client=h.client,
            received=h.received,
            resume=h.resume,
            shard=h.shard_plus_one - 1 if h.shard_plus_one else None,
            shards=h.shards or None,
            version=h.version,
            software=h.software[:MAX_NAME],
            stream=h.stream,
            slow=h.slow,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Greeting:
    """Answer of a server that accepts the stream."""

    client: str
    received: int
    resumed: bool
    incarnation: int
    version: int = WIRE_VERSION
    software: str = ""

    def check_version(self) -> None:
        """Raise Refused unless the server uses the wire version of this side."""
        if self.version != WIRE_VERSION:
            raise Refused(
                "version",
                f"the server speaks wire version {self.version} (cutlayer {self.software!r:.80}), "
                f"this client {WIRE_VERSION} (cutlayer {__version__})",
            )

    def to_frame(self) -> bytes:
        """Serialize to a frame."""
        header = pb.Greeting(
            version=self.version,
            software=self.software,
            client=self.client,
            received=self.received,
            resumed=self.resumed,
            incarnation=self.incarnation,
        )
        return pb.ServerFrame(greeting=header).SerializeToString()


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Answer of a server that does not accept the stream, which ends after it."""

    code: str
    reason: str

    def to_frame(self) -> bytes:
        """Serialize to a frame."""
        refusal = pb.Refusal(code=self.code[:MAX_NAME], reason=self.reason[:MAX_SENTENCE])
        return pb.ServerFrame(refusal=refusal).SerializeToString()


def refused(refusal: pb.Refusal) -> Refused:
    """Return the error for a received refusal. Its texts are cut to the length that this side would send."""
    return Refused(refusal.code[:MAX_NAME], refusal.reason[:MAX_SENTENCE])


def read_answer(frame: bytes) -> Greeting | Refusal:
    """Parse the server's answer to a Hello. Raises WireError on anything else."""
    if len(frame) > MAX_ANSWER:
        raise WireError(f"an answer to hello of {len(frame)} bytes, at most {MAX_ANSWER} are allowed")
    try:
        parsed = pb.ServerFrame.FromString(frame)
    except DecodeError as error:
        raise WireError("the server's first frame is not a protobuf ServerFrame") from error
    match parsed.WhichOneof("header"):
        case "greeting":
            g = parsed.greeting
            if not is_name(g.client):
                raise WireError(
                    f"greeting.client must be at most {MAX_NAME} printable characters without '/', "
                    f"got {g.client[:80]!r}"
                )
            return Greeting(
                client=g.client,
                received=g.received,
                resumed=g.resumed,
                incarnation=g.incarnation,
                version=g.version,
                software=g.software[:MAX_NAME],
            )
        case "refusal":
            said = refused(parsed.refusal)
            return Refusal(code=said.code, reason=said.reason)
        case other:
            raise WireError(f"the server answered hello with {other or 'nothing'!r}")
