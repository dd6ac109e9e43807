"""Identity and secrecy over real sockets: who is refused and told why, who can take whose session, and what never goes in plaintext."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from authority import LONG_AGO, TOKENS, Authority, write_tokens
from live import ClientThread, FlakyCarrier, LiveServer, serving
from world import make_config

from sl_client.transport.access import Access, make_access
from sl_client.transport.stream import GrpcStream, StreamBroken
from sl_client.transport.tls import Tls
from sl_common.errors import ConfigError, PeerLost, Refused
from sl_common.messages.facts import RoundEnded
from sl_common.wire import Greeting, Hello, Refusal, read_answer
from sl_server.core.identity import UNPROVEN
from sl_server.security.certificates import serialization
from sl_server.security.credentials import Credentials, make_credentials
from sl_server.simulation.simulation import Simulation
from sl_server.transport import server as grpc_server

WAITS = {"run__clients": 2}  # with one client there, the run does not begin


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.toml")


def through(access: Access) -> partial:
    return partial(GrpcStream, access=access)


def refused(address: str, access: Access, **options: object) -> Refused:
    """How a client ends that must not take part: at once, and not after the minute of its retries."""
    client = ClientThread(address, through(access), **options)
    client.join(45)
    assert isinstance(client.error, Refused), client.error
    return client.error


def simulated_sha(config) -> str:
    simulation = Simulation(config)
    simulation.run()
    return simulation.coordinator.weights_sha256()


# --- a run over TLS


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("with_tokens", [True, False])
def test_a_run_over_tls_with_cut_streams_ends_with_the_simulators_bits(
    ours: Authority, tokens: Path, mutual: bool, with_tokens: bool
) -> None:
    config = make_config("splitfed_v1", run__clients=2)
    door = ours.door(mutual=mutual, tokens=tokens if with_tokens else None)
    with serving(config, door) as live:
        clients = []
        for name in ("c0", "c1"):
            access = ours.access(name if mutual else "", token=TOKENS[name] if with_tokens else "")
            clients.append(ClientThread(live.address, partial(FlakyCarrier, frames=7, access=access)))
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None, None]
    assert live.sample("sl_reconnects_total") >= 2
    assert live.coordinator.weights_sha256() == simulated_sha(config)


def test_tokens_over_plaintext_on_this_machine(tokens: Path) -> None:
    config = make_config("parallel", run__clients=1)
    with serving(config, make_credentials("127.0.0.1:0", tokens=tokens)) as live:
        error = refused(live.address, Access(token=TOKENS["c1"]), name="c2")
        client = ClientThread(live.address, through(Access(token=TOKENS["c1"])))
        client.join(60)
    assert error.reason == UNPROVEN
    assert client.bye.finished
    assert {fact.client for fact in live.facts if hasattr(fact, "client")} == {"c1"}


# --- refusals by the service: both sides know why


@contextmanager
def one_waiting(door: Credentials) -> Iterator[LiveServer]:
    """A server that serves whoever comes but does not begin to train."""
    with serving(make_config("parallel", **WAITS), door) as live:
        yield live


def test_a_certificate_of_another_id(ours: Authority) -> None:
    with one_waiting(ours.door()) as live:
        error = refused(live.address, ours.access("c0"), name="c1")
    both = "this client calls itself 'c1', its certificate is that of 'c0'"
    assert (error.code, error.reason) == ("identity", both)
    assert live.warnings == [f"refused 'c1' at 127.0.0.1 (identity): {both}"]
    assert live.sample("sl_rejected_total", reason="identity") == 1


def test_every_kind_of_wrong_token_gets_the_same_answer(ours: Authority, tokens: Path) -> None:
    tries = {
        "of another client": ("c1", TOKENS["c0"]),
        "wrong": ("c1", "x" * 32),
        "missing": ("c1", ""),
        "unknown id": ("nobody", "x" * 32),
        "unknown id, good token": ("nobody", TOKENS["c0"]),
        "no id, wrong token": ("", "x" * 32),
    }
    with one_waiting(ours.door(mutual=False, tokens=tokens)) as live:
        errors = {what: refused(live.address, ours.access(token=t), name=name) for what, (name, t) in tries.items()}
        assert {(e.code, e.reason) for e in errors.values()} == {("identity", UNPROVEN)}
        assert live.sample("sl_rejected_total", reason="identity") == len(tries)
        assert len(live.warnings) == 3, "once for each name at this address"
        assert not [text for text in live.warnings if "x" * 32 in text or TOKENS["c0"] in text]


def test_a_certificate_and_a_token_must_be_of_one_client(ours: Authority, tokens: Path) -> None:
    with one_waiting(ours.door(tokens=tokens)) as live:
        assert refused(live.address, ours.access("c0", token=TOKENS["c1"])).reason == UNPROVEN
        assert refused(live.address, ours.access("c0")).reason == UNPROVEN


# --- sessions of others


class Stream(GrpcStream):
    """A stream that the test speaks on itself."""

    def answer(self, hello: Hello) -> Greeting | Refusal:
        self.send(hello.to_frame())
        return read_answer(self.receive())


@pytest.mark.parametrize("by", ["certificate", "token"])
def test_nobody_takes_or_reads_anothers_session(ours: Authority, tokens: Path, by: str) -> None:
    """The thief is a client of the same run, and knows everything that the victim ever sent to open a stream."""
    mutual = by == "certificate"
    config = make_config("splitfed_v1", run__clients=2, run__rounds=3)
    mine = {name: ours.access(name) if mutual else ours.access(token=TOKENS[name]) for name in ("c0", "c1", "c2")}
    heard: list[bytes] = []
    with serving(config, ours.door(mutual=mutual, tokens=None if mutual else tokens)) as live:
        victim = ClientThread(live.address, through(mine["c0"]), name="c0")
        while "c0" not in live.engine.sessions.by_client:
            time.sleep(0.02)
        life = live.engine.sessions.by_client["c0"].life
        answers = []
        for name in ("c0", "c1", ""):
            for resume in (True, False):
                thief = Stream(live.address, mine["c1"])
                answers.append(thief.answer(Hello(life=life, client=name, resume=resume)))  # a replay, word for word
                with suppress(StreamBroken):
                    heard.append(thief.receive())
                thief.close()
        fresh = Stream(live.address, mine["c1"])
        answers.append(fresh.answer(Hello(life=bytes(16), client="c0")))  # another life under the victim's name
        fresh.close()
        other = ClientThread(live.address, through(mine["c1"]), name="c1")
        for client in (victim, other):
            client.join(60)
    assert {type(answer) for answer in answers} == {Refusal}
    assert {answer.code for answer in answers} == {"identity"}
    assert heard == [], "nothing after the refusal"
    assert live.sample("sl_rejected_total", reason="identity") == len(answers)
    assert live.sample("sl_reconnects_total") == 0
    assert [client.error for client in (victim, other)] == [None, None]
    assert "lost" not in victim.show.events, "the victim noticed nothing"
    assert live.coordinator.weights_sha256() == simulated_sha(config)


def test_nothing_is_kept_of_what_a_stranger_sends_after_its_hello() -> None:
    """The engine is not running: nobody has said yes yet. Later the stream is served as ever."""
    live = LiveServer(make_config("parallel", **WAITS))

    async def knock() -> None:
        server, port = await grpc_server.start(live.engine.inbox, "127.0.0.1:0")
        stream = Stream(f"127.0.0.1:{port}", Access())
        stream.send(Hello(life=bytes(16)).to_frame())
        for _ in range(20):
            stream.send(bytes(1 << 20))
        await asyncio.sleep(0.5)
        assert live.engine.inbox.size() == 1, "the Hello alone"
        live.engine.start()
        loop = asyncio.get_running_loop()
        assert isinstance(read_answer(await loop.run_in_executor(None, stream.receive)), Greeting)
        stream.close()
        live.engine.stop("the test is over")
        live.engine.join(20)
        await server.stop(grace=0)

    asyncio.run(knock())


# --- refusals by TLS: gRPC only says that the server is unavailable


def fault_of(live: LiveServer, access: Access) -> str:
    error = refused(live.address, access)
    assert error.code == "tls"
    return error.reason


def test_a_server_of_another_ca(ours: Authority, foreign: Authority) -> None:
    with one_waiting(ours.door(mutual=False)) as live:
        told = fault_of(live, Access(tls=Tls(ca=foreign.ca)))
    assert told.startswith(f"the certificate of {live.address} was not signed by the CA in --ca {foreign.ca}")


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"now": LONG_AGO}, "expired on "),
        ({"hosts": ["gpu.example.org", "192.0.2.7"]}, "is for gpu.example.org, 192.0.2.7; not for '127.0.0.1'"),
    ],
)
def test_a_server_whose_certificate_does_not_hold(ours: Authority, server: dict, told: str) -> None:
    cert, key = ours.server("bad", **server)
    with one_waiting(make_credentials("127.0.0.1:0", cert=cert, key=key)) as live:
        assert told in fault_of(live, ours.access())


def test_a_device_whose_clock_is_behind(ours: Authority) -> None:
    cert, key = ours.server("bad", now=LONG_AGO + timedelta(days=50))
    with one_waiting(make_credentials("127.0.0.1:0", cert=cert, key=key)) as live:
        assert "is this device's clock right?" in fault_of(live, ours.access())


def test_a_client_without_a_certificate(ours: Authority) -> None:
    with one_waiting(ours.door()) as live:
        assert fault_of(live, ours.access()) == f"{live.address} wants a client certificate: give --cert and --key"


def test_a_client_whose_certificate_does_not_hold(ours: Authority, foreign: Authority) -> None:
    with one_waiting(ours.door()) as live:
        for who, why in (
            (foreign.client("c0"), "(c0): another CA than its --client-ca signed it"),
            (ours.client("c0", "old", now=LONG_AGO), "(c0): it expired on "),
            (ours.server("posing"), "it is not made for a client"),
        ):
            told = fault_of(live, Access(tls=Tls(ca=ours.ca, cert=who[0], key=who[1])))
            assert f"{live.address} does not take the certificate --cert {who[0]}" in told
            assert why in told


def test_a_plaintext_client_of_a_tls_server(ours: Authority) -> None:
    with one_waiting(ours.door(mutual=False)) as live:
        assert fault_of(live, Access()) == f"{live.address} speaks TLS: name the CA of its certificate with --ca"


def test_a_tls_client_of_a_plaintext_server(ours: Authority) -> None:
    with one_waiting(Credentials()) as live:
        told = fault_of(live, ours.access("c0", token=TOKENS["c0"]))
    assert told == f"{live.address} speaks plaintext and --ca asks for TLS: start it with --cert and --key"


def test_a_server_that_is_not_there_is_waited_for(ours: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = ClientThread(f"127.0.0.1:{port}", through(ours.access("c0")), retry_s=1.0)
    client.join(30)
    assert isinstance(client.error, PeerLost)
    assert "waiting" in client.show.events


@pytest.mark.parametrize("times", [1, 2])
def test_a_server_that_is_going_down_is_no_server_that_does_not_want_us(ours: Authority, times: int) -> None:
    """It closes a connection after the handshake, as one does that dies or that refuses a certificate; only twice is a no."""
    cert, key = ours.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = socket.create_server(("127.0.0.1", 0))

    def die() -> None:
        with server:
            for _ in range(times):
                context.wrap_socket(server.accept()[0], server_side=True).close()

    thread = threading.Thread(target=die)
    thread.start()
    fault = Tls(ca=ours.ca).fault(f"127.0.0.1:{server.getsockname()[1]}")
    thread.join(10)
    assert (fault is not None) == (times == 2)


# --- no way back to plaintext


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """Somebody in the middle who takes every connection, says what a plaintext server says, and keeps what comes."""
    came: list[bytes] = []

    def talk(line: socket.socket) -> None:
        with line, suppress(OSError):
            line.settimeout(2)
            line.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # an HTTP/2 server's SETTINGS
            while data := line.recv(1 << 16):
                came.append(data)

    def take() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", came


def test_a_client_told_to_use_tls_says_nothing_in_plaintext(ours: Authority) -> None:
    with listening() as (address, came):
        error = refused(address, ours.access("c0", token=TOKENS["c0"]), name="a-telling-name")
        said = b"".join(came)
    assert "speaks plaintext" in error.reason
    assert said[:1] == b"\x16", "a TLS handshake"
    assert b"PRI * HTTP/2" not in said
    for secret in (TOKENS["c0"].encode(), b"a-telling-name", b"SplitLearning"):
        assert secret not in said


def test_the_listener_would_hear_plaintext() -> None:
    """So that its silence above shows something."""
    with listening() as (address, came):
        client = ClientThread(address, through(Access(token=TOKENS["c0"])), retry_s=1.0, name="a-telling-name")
        client.join(30)
        said = b"".join(came)
    assert b"PRI * HTTP/2" in said
    assert TOKENS["c0"].encode() in said


@pytest.mark.parametrize(
    "asked", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_a_tls_server_answers_nothing_in_plaintext(ours: Authority, asked: bytes) -> None:
    with one_waiting(ours.door(mutual=False)) as live:
        host, port = live.address.split(":")
        with socket.create_connection((host, int(port)), 10) as line:
            line.sendall(asked)
            said = b""
            with suppress(ConnectionError):
                while data := line.recv(1 << 16):
                    said += data
    assert said == b"" or said[:1] == b"\x15", "nothing, or an alert"


# --- renewed certificates


def test_certificates_are_renewed_while_a_client_trains(tmp_path: Path) -> None:
    """The authority itself is exchanged: who is inside goes on, who comes then needs the new one."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    (tmp_path / "used").mkdir()
    used = {name: tmp_path / "used" / f"{name}.pem" for name in ("cert", "key", "client_ca")}

    def install(authority: Authority, **when: object) -> None:
        cert, key = authority.server(**when)
        for name, path in (("cert", cert), ("key", key), ("client_ca", authority.ca)):
            fresh = used[name].with_suffix(".new")
            fresh.write_bytes(path.read_bytes())
            fresh.replace(used[name])

    install(old)
    config = make_config("parallel", run__clients=1, run__rounds=100000)
    with serving(config, make_credentials("127.0.0.1:0", **used)) as live:
        trains = ClientThread(live.address, through(old.access("c0")))
        rounds_at_least(live, 2)
        install(new, name="renewed")
        subject = new.access("c1").tls.look(live.address)[0].subject
        assert subject == "renewed"
        assert "not signed by the CA" in fault_of(live, old.access("c1"))
        rounds_at_least(live, 2)
        assert "lost" not in trains.show.events

        used["cert"].write_text("half a certifica")
        assert new.access("c1").tls.look(live.address)[0].subject == "renewed"
        assert [text for text in live.warnings if "what was read before stays in use" in text]
        install(new, name="renewed again")
        assert new.access("c1").tls.look(live.address)[0].subject == "renewed again"
        rounds_at_least(live, 2)
        trains.runner.interrupt()
        trains.join(30)
        assert live.sample("sl_reconnects_total") == 0


def rounds_at_least(live: LiveServer, more: int) -> None:
    """Wait for so many further rounds."""
    deadline, begun = time.monotonic() + 60, sum(isinstance(f, RoundEnded) for f in live.facts)
    while sum(isinstance(f, RoundEnded) for f in live.facts) < begun + more:
        assert time.monotonic() < deadline, "the training stands still"
        time.sleep(0.02)


def test_a_token_taken_out_of_its_file_opens_nothing_more(ours: Authority, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "tokens.toml")
    with one_waiting(ours.door(mutual=False, tokens=path)) as live:
        first = Stream(live.address, ours.access(token=TOKENS["c0"]))
        assert isinstance(first.answer(Hello(life=bytes(16))), Greeting)
        write_tokens(path, {"c1": TOKENS["c1"]})
        again = Stream(live.address, ours.access(token=TOKENS["c0"]))
        assert again.answer(Hello(life=bytes(16), client="c0", resume=True)).code == "identity"
        for stream in (first, again):
            stream.close()


# --- options

CLIENT_MISTAKES = {
    "no CA": ({"cert": "c0.pem", "key": "c0.key"}, "--cert is for TLS, which needs the CA"),
    "no key": ({"ca": "ca.pem", "cert": "c0.pem"}, "--cert and --key belong together"),
    "no cert": ({"ca": "ca.pem", "key": "c0.key"}, "--cert and --key belong together"),
    "both": ({"ca": "ca.pem", "insecure": True}, "--insecure asks for plaintext and --ca for TLS"),
    "no such CA": ({"ca": "none.pem"}, r"--ca .*/none\.pem: No such file"),
    "a folder": ({"ca": "."}, r"--ca .*: Is a directory"),
    "no PEM": ({"ca": "junk"}, r"--ca .*/junk: no certificate in PEM form"),
    "no such key": ({"ca": "ca.pem", "cert": "c0.pem", "key": "none"}, r"--key .*/none: No such file"),
    "not its key": ({"ca": "ca.pem", "cert": "c0.pem", "key": "c1.key"}, r"c1\.key does not belong to .*c0\.pem"),
    "junk for a key": ({"ca": "ca.pem", "cert": "c0.pem", "key": "junk"}, "not a certificate and its key in PEM form"),
    "a locked key": ({"ca": "ca.pem", "cert": "c0.pem", "key": "locked.key"}, r"locked\.key is encrypted"),
    "a token in plaintext": ({"token": TOKENS["c0"], "insecure": True}, "--token would be sent to .* in plaintext"),
    "plaintext": ({}, r"is another machine: add TLS with --ca, or --insecure"),
    "a token file": ({"ca": "ca.pem", "token": "@/no/where"}, "--token @/no/where: No such file"),
    "an empty token file": ({"ca": "ca.pem", "token": "@/dev/null"}, "--token: the file is empty"),
    "a token with spaces": ({"ca": "ca.pem", "token": "to ken"}, "--token: a token has printable ASCII characters"),
}
SERVER_MISTAKES = {
    "no key": ({"cert": "c0.pem"}, "--cert and --key belong together"),
    "no TLS": ({"client_ca": "ca.pem"}, "--client-ca asks clients for certificates, which needs TLS"),
    "both": ({"cert": "c0.pem", "key": "c0.key", "insecure": True}, "--insecure asks for plaintext and --cert for TLS"),
    "no such cert": ({"cert": "none", "key": "c0.key"}, r"--cert .*/none: No such file"),
    "not its key": ({"cert": "c0.pem", "key": "c1.key"}, r"c1\.key does not belong to .*c0\.pem"),
    "junk": ({"cert": "junk", "key": "junk"}, "not a certificate and its key in PEM form"),
    "a locked key": ({"cert": "c0.pem", "key": "locked.key"}, r"locked\.key is encrypted"),
    "junk for a CA": ({"cert": "c0.pem", "key": "c0.key", "client_ca": "junk"}, r"--client-ca .*/junk: no certificate"),
    "no such CA": ({"cert": "c0.pem", "key": "c0.key", "client_ca": "none"}, r"--client-ca .*/none: No such file"),
    "tokens in plaintext": (
        {"tokens": "junk", "insecure": True},
        r"--tokens on --listen 0\.0\.0\.0:0 would be sent in plain",
    ),
    "plaintext": ({}, r"--listen 0\.0\.0\.0:0 is not on this machine alone: add TLS .* or --insecure"),
}


@pytest.fixture(scope="module")
def papers(ours: Authority) -> Path:
    """A folder with good files and bad ones."""
    for name in ("c0", "c1"):
        ours.client(name)
    (ours.folder / "junk").write_text("no certificate, no key, no token")
    key = serialization.load_pem_private_key((ours.folder / "c0.key").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"passphrase")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
    (ours.folder / "locked.key").write_bytes(key.private_bytes(*form))
    return ours.folder


@pytest.mark.parametrize("what", CLIENT_MISTAKES)
def test_a_clients_options(papers: Path, what: str) -> None:
    given, told = CLIENT_MISTAKES[what]
    options = {"ca": None, "cert": None, "key": None, "token": None, "insecure": False} | given
    options |= {name: papers / options[name] for name in ("ca", "cert", "key") if options[name]}
    with pytest.raises(ConfigError, match=told) as caught:
        make_access("gpu.example.org:50051", **options)
    assert TOKENS["c0"] not in str(caught.value)


@pytest.mark.parametrize("what", SERVER_MISTAKES)
def test_a_servers_options(papers: Path, what: str) -> None:
    given, told = SERVER_MISTAKES[what]
    paths = {name: papers / value for name, value in given.items() if isinstance(value, str)}
    with pytest.raises(ConfigError, match=told):
        make_credentials("0.0.0.0:0", **{**given, **paths})


def test_an_access_does_not_show_its_token(ours: Authority) -> None:
    assert TOKENS["c0"] not in repr(ours.access("c0", token=TOKENS["c0"]))


def test_a_token_from_a_file(papers: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKENS["c0"] + "\n")
    access = make_access("gpu:1", ca=papers / "ca.pem", cert=None, key=None, token=f"@{tmp_path}/token", insecure=False)
    assert access.metadata == (("authorization", f"Bearer {TOKENS['c0']}"),)
