"""A client that means harm writes to the server's terminal and log; what is shown is printable text, line by line."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

import grpc
import pytest
from hostile import EVIL
from processes import Process, started

from sl_common.codec import Link
from sl_common.messages.training import Done, Leave, Message, Ready
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint, Hello

CONFIG = """
[run]
rounds = 1
clients = 9
[model]
name = "mlp"
"""
METHOD = "/sl.v1.SplitLearning/Train"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    """A real one, in plain lines, and its address."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "run.toml").write_text(CONFIG)
    command = "sl-server", "run", folder / "run.toml", "--listen", "127.0.0.1:0", "--out", folder / "out"
    with started(*command) as process:
        while not process.lines:
            assert process.is_running(), process.err
        yield process, process.lines[0].split()[2]


def said(address: str, *frames: bytes) -> None:
    """Say these frames on a stream of our own, all but the first after the Welcome, which they acknowledge, and hear the server out until
    it ends the stream, or says nothing for a while."""
    asks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    asks.put(frames[0])
    with grpc.insecure_channel(address) as channel:
        answers = channel.stream_stream(METHOD)(iter(asks.get, None), timeout=5)
        with contextlib.suppress(grpc.RpcError):
            for number, _ in enumerate(answers):
                if number == 1:  # after the Greeting
                    for frame in frames[1:]:
                        asks.put(frame)
        asks.put(None)


def messages(*these: Message) -> list[bytes]:
    """After a Hello of a new client, and the server's Welcome."""
    end = Endpoint("client", link=Link(), limit_bytes=1 << 20)
    end.delivery.received = 1
    return [bytes(frame) for message in these for frame in end.pack(message)]


def hello(number: int, **fields: object) -> bytes:
    return Hello(life=bytes([number]) * 16, **fields).to_frame()


READY = Ready(samples=64, batches=1)
HOSTILE: dict[str, list[bytes]] = {
    "its name": [hello(1, client=EVIL)],
    "its version": [hello(2, software=EVIL, version=77)],
    "why it leaves": [hello(3), *messages(READY, Leave(reason=EVIL))],
    "a digest's part": [
        hello(4),
        *messages(READY, Done(round=0, wave=0, steps=0, samples=0, digests={EVIL: bytes(32)})),
    ],
    "a part's name": [hello(5), *messages(READY, Done(round=0, wave=0, steps=0, samples=0, weights={EVIL: {}}))],
    "a codec": [
        hello(6),
        pb.ClientFrame(
            seq=1, smashed=pb.Smashed(y=pb.Tensor(codec=EVIL, dtype=5), z=pb.Tensor(codec=EVIL, dtype=1))
        ).SerializeToString(),
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_control_character_reaches_the_servers_terminal(server: tuple[Process, str], what: str) -> None:
    process, address = server
    before = len(process.lines)
    said(address, *HOSTILE[what])
    while len(process.lines) == before:
        assert process.is_running(), process.err
    for line in [*process.lines, *process.err.split("\n")]:
        assert line.isprintable(), repr(line)


def test_a_newline_of_a_clients_makes_no_line_of_ours(server: tuple[Process, str]) -> None:
    process, address = server
    said(address, hello(9), *messages(READY, Leave(reason="x\nround 1/1: loss 0.0000")))
    while not any("left: x round 1/1: loss 0.0000" in line for line in list(process.lines)):
        assert process.is_running(), process.out
    assert not any(line.startswith("round 1/1:") for line in process.lines)
