"""A server that means harm: a real gRPC port on loopback that greets a client and then says whatever a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from sl_common.codec import Link
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint, Hello
from sl_common.wire.greeting import Greeting

EVIL = "a\x1b[31m\r\n\0\x07\x9b2J\u202eb"  # escape sequences, newlines, NUL, bell, C1, a change of direction
Answer = Callable[[Iterator[bytes]], Iterator[bytes]]


@contextmanager
def hostile(answer: Answer) -> Iterator[str]:
    """Serve every call of our service by `answer`, from what came to what goes back; its HOST:PORT."""

    def handle(frames: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from answer(frames)

    methods = {name: grpc.stream_stream_rpc_method_handler(handle) for name in ("Train", "Infer", "Probe")}
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("sl.v1.SplitLearning", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=0).wait()


def greeting(client: str = "c0") -> bytes:
    """A yes to any Hello."""
    return Greeting(client=client, received=0, resumed=False, incarnation=1, software="0").to_frame()


def says(*messages: object, call: str = "train") -> Answer:
    """Greet, then say these messages, whatever the client says, and wait for it to go."""

    def answer(frames: Iterator[bytes]) -> Iterator[bytes]:
        Hello.from_frame(next(frames))
        yield greeting()
        end = Endpoint("server", link=Link(), limit_bytes=1 << 26, call=call)
        for message in messages:
            for frame in end.pack(message):
                yield bytes(frame)
        for _ in frames:
            pass

    return answer


def sends(*headers: dict[str, object]) -> Answer:
    """The same with raw frames, numbered; a body of zeros fits the tensor headers if there are any."""

    def answer(frames: Iterator[bytes]) -> Iterator[bytes]:
        Hello.from_frame(next(frames))
        yield greeting()
        for seq, fields in enumerate(headers, start=1):
            yield pb.ServerFrame(seq=seq, **fields).SerializeToString()
        for _ in frames:
            pass

    return answer
