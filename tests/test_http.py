"""The one HTTP server: what it answers, and that no peer can hold it or the process that it is in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import all_of, asked, connected, got
from drawn import LAW
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_common.host.http import CONNECTIONS, MAX_HEAD, MAX_REQUEST_LINE, HttpAnswer, HttpServer

LARGE = 1 << 26  # more than any kernel buffers


class Pages:
    """What is served here, and how often all of it was taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.headers: list[dict[str, str]] = []

    def small(self, headers: dict[str, str]) -> HttpAnswer:
        self.headers.append(dict(headers))
        return HttpAnswer(body=b"small\n", taken=self.count)

    def large(self, _headers: object) -> HttpAnswer:
        return HttpAnswer(body=bytes(LARGE), type="application/octet-stream", taken=self.count)

    def broken(self, _headers: object) -> HttpAnswer:
        raise RuntimeError("a bug of the page's")

    def count(self) -> None:
        self.taken += 1


@contextmanager
def serving(host: str = "127.0.0.1", **options: float) -> Iterator[tuple[Pages, int, HttpServer]]:
    pages = Pages()
    server = HttpServer({"/small": pages.small, "/large": pages.large, "/broken": pages.broken}, **options)
    try:
        yield pages, server.start(host, 0), server
    finally:
        server.close()


def test_a_page_is_answered() -> None:
    with serving() as (pages, port, _):
        status, headers, body = asked(port, b"GET /small?since=1 HTTP/1.1\r\nHost: h\r\nX-Who: me\r\n\r\n")
    assert (status, body) == (200, b"small\n")
    assert (headers["Content-Length"], headers["Connection"]) == ("6", "close")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Date"].endswith("GMT")
    assert pages.headers == [{"host": "h", "x-who": "me"}]
    assert pages.taken == 1


def test_a_head_has_no_body_and_takes_nothing() -> None:
    with serving() as (pages, port, _):
        status, headers, body = asked(port, b"HEAD /small HTTP/1.0\r\n\r\n")
        assert (status, headers["Content-Length"], body) == (200, "6", b"")
        assert got(port, "/none", method="HEAD") == (404, b"")
    assert pages.taken == 0


WRONG = {
    "another path": (b"GET /other HTTP/1.1\r\n\r\n", 404),
    "no path": (b"GET / HTTP/1.1\r\n\r\n", 404),
    "below a path": (b"GET /small/er HTTP/1.1\r\n\r\n", 404),
    "a POST": (b"POST /small HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
    "a DELETE": (b"DELETE /small HTTP/1.1\r\n\r\n", 405),
    "a long line": (b"GET /small?" + b"a" * MAX_REQUEST_LINE + b" HTTP/1.1\r\n\r\n", 414),
    "long headers": (b"GET /small HTTP/1.1\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n", 431),
    "many headers": (b"GET /small HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 400),
    "one word": (b"GET\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a bug": (b"GET /broken HTTP/1.1\r\n\r\n", 500),
}


@pytest.mark.parametrize("what", WRONG)
def test_anything_else_is_refused_and_the_next_one_answered(what: str, capfd: pytest.CaptureFixture) -> None:
    request, status = WRONG[what]
    with serving() as (_, port, _server):
        found, headers, body = asked(port, request)
        assert found == status
        assert body
        assert headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert got(port, "/small") == (200, b"small\n")
    assert ("a bug of the page's" in capfd.readouterr().err) == (what == "a bug")


TOKENS = [b"GET", b"/small", b"HTTP/1.1", b" ", b"\r\n", b"\n", b":", b"A: b", b"http://[", b"\x00", b"\xff", b"\r"]


@settings(LAW, max_examples=300)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    server = HttpServer({"/small": Pages().small})
    answer, _ = server._asked(data + b"\r\n\r\n")
    server.close()
    assert answer.status in (200, 400, 404, 405, 505)


def test_ipv6() -> None:
    with serving("[::1]") as (_, port, _server):
        assert got(port, "/small", host="::1") == (200, b"small\n")


def test_a_port_that_is_taken_is_an_error() -> None:
    with serving() as (_, port, _server):
        second = HttpServer({})
        with pytest.raises(OSError, match="in use"):
            second.start("127.0.0.1", port)
        second.close()


@pytest.mark.parametrize("first", [b"", b"GET /sm", b"GET /small HTTP/1.1\r\nA: "])
def test_half_a_request_is_ended_however_it_goes_on(first: bytes) -> None:
    """One byte now and then buys no time."""
    with serving(whole_s=0.5) as (_, port, _server), connected(port) as peer:
        peer.sendall(first)
        assert dripped(peer, b"x" if first else b"", 200) < 100


def dripped(peer: socket.socket, byte: bytes, most: int) -> int:
    """How often, 20 times a second, a byte could be sent before the other side ended the connection."""
    peer.settimeout(0.05)
    for count in range(most):
        try:
            peer.sendall(byte)
            if not peer.recv(1):
                return count
        except TimeoutError:
            continue
        except ConnectionError:
            return count
    return most


def test_a_slow_reader_is_ended_and_counts_as_nobody() -> None:
    with serving(whole_s=0.5) as (pages, port, _server), connected(port, receive_bytes=4096) as peer:
        peer.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        read = 0
        for _ in range(15):
            read += len(peer.recv(1))
            time.sleep(0.05)
        assert 0 < read + len(all_of(peer)) < LARGE
        assert got(port, "/small") == (200, b"small\n")
    assert pages.taken == 1


def test_a_large_page_is_taken_whole() -> None:
    with serving(whole_s=60.0) as (pages, port, _server):
        assert got(port, "/large") == (200, bytes(LARGE))
    assert pages.taken == 1


def test_many_connections_cost_a_fixed_number_and_no_thread() -> None:
    """The oldest go, and whoever asks is answered all the while."""
    with serving(whole_s=60.0) as (_, port, _server), contextlib.ExitStack() as stack:
        before = threading.active_count()
        peers = [stack.enter_context(connected(port)) for _ in range(4 * CONNECTIONS)]
        assert got(port, "/small") == (200, b"small\n")
        assert threading.active_count() == before
        here = 0
        for peer in peers:
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert peer.recv(1) == b""
                continue
            here += 1
        assert CONNECTIONS // 2 < here < CONNECTIONS
        with pytest.raises(BlockingIOError):
            peers[-1].recv(1)  # the newest stays


def test_closing_waits_for_nobody_and_frees_the_port() -> None:
    with serving(whole_s=600.0) as (_, port, server), contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(port, receive_bytes=4096)) for _ in range(3)]
        for peer, said in zip(peers, (b"", b"GET /sm", b"GET /large HTTP/1.1\r\n\r\n"), strict=True):
            peer.sendall(said)
        assert peers[2].recv(1) == b"H"
        server.close()
        assert not server._thread.is_alive()
        assert all(len(all_of(peer)) < LARGE for peer in peers)
        with socket.create_server(("127.0.0.1", port)):
            server.close()  # a second time does no harm


FEW_FILES = """
import resource, sys, time
from sl_common.host.http import HttpAnswer, HttpServer
server = HttpServer({"/small": lambda _: HttpAnswer(body=b"small")}, whole_s=60.0)
port = server.start("127.0.0.1", 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
print(port, flush=True)
began = time.process_time()
sys.stdin.readline()
print(time.process_time() - began, flush=True)
sys.stdin.readline()
"""


def test_without_a_free_file_descriptor_it_waits_for_one() -> None:
    """And does not spin meanwhile."""
    child = subprocess.Popen(
        [sys.executable, "-c", FEW_FILES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    with child:
        port = int(child.stdout.readline())
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connected(port))
            time.sleep(1.0)
            child.stdin.write("\n")
            child.stdin.flush()
            assert float(child.stdout.readline()) < 0.5
        assert got(port, "/small") == (200, b"small")
        child.stdin.close()
        assert child.wait(30) == 0
