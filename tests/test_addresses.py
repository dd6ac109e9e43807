"""Addresses as people write them: understood, or refused with the form that would do, and by every command alike."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import ran, ran_all, started

from sl_common.addresses import Address, address_to_listen, address_to_reach, joined
from sl_common.errors import ConfigError
from sl_server.cli.options import host_port


def to_reach(text: str) -> str:
    return address_to_reach(text, "--server")


def refusal(text: str, *, listens: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        address_to_listen(text, "--listen") if listens else to_reach(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", "host:1"),
        ("  host:65535\n", "host:65535"),  # as a file of variables may leave it
        ("[::1]:50051", "[::1]:50051"),
        ("[fe80::1%eth0]:5", "[fe80::1%eth0]:5"),
        ("192.0.2.1:5", "192.0.2.1:5"),
        ("my_host:5", "my_host:5"),
        ("xn--bcher-kva.example.:5", "xn--bcher-kva.example.:5"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
    ],
)
def test_an_address_is_understood(text: str, address: str) -> None:
    assert to_reach(text) == address


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("http://host:5", "host:5"),
        ("https://host:5/", "host:5"),
        ("grpc://host", "host:50051"),
        ("HTTP://user:word@host:5/path?x#y", "host:5"),
        ("tcp://192.0.2.1:5", "192.0.2.1:5"),
        ("http://[::1]:5", "[::1]:5"),
        ("dns:///host:5", "host:5"),
        ("dns://192.0.2.1/host:5", "host:5"),
        ("dns:host:5", "host:5"),
        ("ipv6:[::1]:5", "[::1]:5"),
        ("host:5/", "host:5"),
        ("host:5/path", "host:5"),
        ("user@host:5", "host:5"),
        ("host", "host:50051"),
        ("host:", "host:50051"),
        ("192.0.2.1", "192.0.2.1:50051"),
        ("50051", "localhost:50051"),
        (":5", "localhost:5"),
        ("*:5", "0.0.0.0:5"),
        ("::1", "[::1]:50051"),
        ("::1:5005", "[::1]:5005"),
        ("::1:50051", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("2001:db8:0:0:0:0:0:1:5", "[2001:db8:0:0:0:0:0:1]:5"),
        ("bücher.example:5", "xn--bcher-kva.example:5"),
        ("bücher.example", "xn--bcher-kva.example:50051"),
    ],
)
def test_what_is_no_address_is_refused_with_what_would_be_one(text: str, better: str) -> None:
    assert f"--server {text!r}: write it as HOST:PORT, here {better} (" in refusal(text)
    assert to_reach(better) == better


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("unix:", "unix:PATH"),
        ("http://", "makes it a URL"),
        ("host:0", "a port is a number from 1 to 65535, not '0'"),
        ("host:65536", "a port is a number from 1 to 65535, not '65536'"),
        ("host:-1", "not '-1'"),
        ("host:²", "not '²'"),
        ("host:١", "not '١'"),
        ("host:00000000170000", "a port is a number from 1 to 65535"),
        ("host:" + "9" * 5000, "a port is a number from 1 to 65535"),
        ("a b:5", "no spaces"),
        ("a\x1b:5", "no spaces"),
        ("256.1.1.1:5", "'256.1.1.1' is no IPv4 address"),
        ("[1.2.3.4]:5", "no IPv6 address"),
        ("-host:5", "no name of a host"),
        ("a" * 64 + ":5", "no name of a host"),
        ("host:1:2", "more than one colon"),
        ("straße.example:5", "its form with xn--"),  # which differs between versions of the rule
    ],
)
def test_what_nobody_can_guess_is_refused_with_the_reason(text: str, why: str) -> None:
    assert why in refusal(text)
    assert ", here " not in refusal(text)


def test_a_server_listens_on_this_machine_unless_it_is_told_where() -> None:
    assert [str(address_to_listen(text, "")) for text in ("5", ":5", "0.0.0.0:0", "[::1]:0")] == [
        "127.0.0.1:5",
        "127.0.0.1:5",
        "0.0.0.0:0",
        "[::1]:0",
    ]
    assert "here [::1]:26133" in refusal("::1:26133", listens=True)
    assert "a server listens on TCP" in refusal("unix:/tmp/x", listens=True)
    with pytest.raises(ConfigError, match="--metrics 'host': write it as HOST:PORT, here host:9464"):
        host_port("host", "--metrics")


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_refusal_that_names_it(text: str) -> None:
    for read in (to_reach, lambda text: str(address_to_listen(text, "--listen"))):
        told = ""
        try:
            found = read(text)
        except ConfigError as error:
            told = str(error)
        assert repr(text) in told if told else read(found) == found


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_ip_address_is_read_back(ip: object, port: int) -> None:
    assert address_to_listen(joined(str(ip), port), "") == Address(str(ip), port)


SMALL = "[run]\nrounds = 1\n[client]\nwave = { steps = 2 }\n[model]\nname = 'mlp'\n"
COMMANDS = {
    "run": "sl-client run --server {}",
    "doctor": "sl-client doctor --server {}",
    "predict": "sl-client predict --test 1 --server {}",
    "listen": "sl-server run run.toml --listen {}",
    "metrics": "sl-server run run.toml --metrics {}",
    "serve": "sl-server serve absent --listen {}",
    "serve metrics": "sl-server serve absent --metrics {}",
}


def test_every_option_for_an_address_reads_it_by_the_same_rule() -> None:
    texts = ("http://127.0.0.1:5", "::1:5005", "127.0.0.1:70000")
    lines = {f"{name} {text}": line.format(text).split() for name, line in COMMANDS.items() for text in texts}
    for name, process in ran_all({name: tuple(line) for name, line in lines.items()}).items():
        assert process.code == 2, name
        assert "write it as HOST:PORT" in process.err, (name, process.err)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_a_run_over_ipv6_and_what_certs_says_for_it(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALL)
    where = ("--listen", "[::1]:0", "--metrics", "[::1]:0", "--out", tmp_path / "out", "--json")
    with started("sl-server", "run", tmp_path / "run.toml", *where) as server:
        address = server.event("listening")["address"]
        assert address.startswith("[::1]:")
        assert ran("sl-client", "doctor", "--server", f" {address} ").code == 0
        assert ran("sl-client", "run", "--server", address).code == 0
        assert server.end() == 0
    made = ran("sl-server", "certs", tmp_path / "certs", "--clients", "1", "--host", "::1")
    assert "--server [::1]:50051" in made.out
