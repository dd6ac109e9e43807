"""What the server's door reads: tokens from their file, and gRPC's own log of handshakes that failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sl_common.errors import ConfigError
from sl_server.security.handshakes import read_line
from sl_server.security.tokens import Tokens

# --- tokens

SECRET = "correct-horse-battery-staple"


def tokens_of(path: Path, text: str) -> Tokens:
    path.write_text(text)
    return Tokens(path)


def test_a_token_has_one_owner(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens", f'c0 = "{SECRET}"\n# a comment\n"north.1" = "{SECRET}2"\n')
    assert tokens.owner(f"Bearer {SECRET}") == ("c0",)
    assert tokens.owner(f"bearer  {SECRET}2 ") == ("north.1",)
    for wrong in (
        "",
        SECRET,
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        f"Bearer {SECRET}3",
        f"Bearer {SECRET.upper()}",
        "Bearer \udcff",
    ):
        assert tokens.owner(wrong) == ()
    assert SECRET not in repr(vars(tokens)) + repr(tokens._watched.current)


BAD_TOKENS = {
    "no TOML": (f"c0 {SECRET}", 'write a line id = "token" for each client'),
    "not in quotes": (f"c0 = {SECRET}", "write a line id"),
    "twice": (f'c0 = "{SECRET}"\nc0 = "{SECRET}2"', "write a line id"),
    "nobody": ("# nobody yet", "there is nobody in it"),
    "a table": (f'north.1 = "{SECRET}"', "'north': a token is a text in quotes"),
    "a number": ("c0 = 1234567890123456", "'c0': a token is a text in quotes"),
    "spaces": (f'c0 = "{SECRET} {SECRET}"', "'c0': a token has printable ASCII characters without spaces"),
    "empty": ('c0 = ""', "'c0': a token has printable"),
    "no name": (f'"" = "{SECRET}"', "a client's name has 1 to 64"),
    "a path": (f'"../c0" = "{SECRET}"', "a client's name has 1 to 64"),
    "shared": (f'c0 = "{SECRET}"\nc1 = "{SECRET}"', "'c1' has the token of another client"),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_a_bad_token_file_is_refused_without_telling_tokens(tmp_path: Path, what: str) -> None:
    text, told = BAD_TOKENS[what]
    with pytest.raises(ConfigError) as caught:
        tokens_of(tmp_path / "tokens", text)
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "1234567890123456" not in str(caught.value)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tokens .*/none: No such file or directory"):
        Tokens(tmp_path / "none")


def test_what_others_can_read_or_guess_is_warned_of(tmp_path: Path) -> None:
    path, said = tmp_path / "tokens", list[str]()
    path.touch(0o644)
    tokens_of(path, 'c0 = "short"').attach(said.append)
    assert "can be read by everybody on this machine: chmod o-r" in said[0]
    assert "fewer than 16 characters can be guessed (c0)" in said[1]
    path.chmod(0o600)
    tokens_of(path, f'c0 = "{SECRET}"').attach(said.append)
    assert len(said) == 2


def test_tokens_are_reread_when_they_change_and_kept_when_they_are_broken(tmp_path: Path) -> None:
    path, said = tmp_path / "tokens", list[str]()
    tokens = tokens_of(path, f'c0 = "{SECRET}"')
    tokens.attach(said.append)
    said.clear()
    path.write_text("half of a li")
    assert [tokens.owner(f"Bearer {SECRET}") for _ in range(3)] == [("c0",)] * 3
    assert len(said) == 1, "said once"
    assert "what was read before stays in use" in said[0]
    path.write_text(f'c1 = "{SECRET}"\n')
    assert tokens.owner(f"Bearer {SECRET}") == ("c1",)
    path.unlink()
    assert tokens.owner(f"Bearer {SECRET}") == ("c1",)
    assert "No such file" in said[1]


# --- gRPC's log

GLOG = "I1121 16:12:51.4135  174 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
HANDSHAKES = {
    f"{GLOG}PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate verification context": "a client without a certificate",
    f"{GLOG}CERTIFICATE_VERIFY_FAILED: certificate has expired": "a client's certificate (certificate has expired)",
    f"{GLOG}WRONG_VERSION_NUMBER": "a client that speaks plaintext",
    f"{GLOG}BAD_PACKET_LENGTH: Invalid certificate verification context": "a client that broke the handshake off",
    f"{GLOG}TLSV1_ALERT_UNKNOWN_CA": "a client that broke the handshake off (TLSV1_ALERT_UNKNOWN_CA)",
    f"{GLOG}NO_SHARED_CIPHER": "a client whose handshake failed (NO_SHARED_CIPHER)",
    "I1121 16:12:51.4 1 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SYSCALL": "a client whose handshake failed (unknown)",
    "E1121 16:14:24.4 1 ssl_transport_security.cc:3238] No match found for server name: vm": "a client that asked for 'vm'",
}


@pytest.mark.parametrize("line", HANDSHAKES)
def test_grpcs_log_tells_of_failed_handshakes(line: str) -> None:
    who, error = read_line(line.encode() + b"\n")
    assert who == HANDSHAKES[line]
    assert error.code == "tls"


@pytest.mark.parametrize(
    "line", ["", "Traceback (most recent call last):", "Handshake failed with error", "\udcff no text"]
)
def test_other_lines_are_not_ours(line: str) -> None:
    assert read_line(line.encode("utf-8", "surrogateescape")) is None


def test_what_is_not_a_handshake_goes_on_to_stderr_as_printable_text() -> None:
    """Descriptor 2 is the process's own, so that a process of its own is needed."""
    code = """
import os, sys
from sl_server.security.handshakes import heard
told = []
with heard(lambda who, error: told.append(who)):
    os.write(2, b"one\\n" + os.environb[b"LINE"] + b"\\n\\xff \\x1b[2Jtwo\\n")
    print("three", file=sys.stderr)
os.write(2, b"four\\n")
print("five", file=sys.stderr)
print(told)
"""
    line = next(iter(HANDSHAKES))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"LINE": line}, check=True
    )
    assert sorted(done.stderr.splitlines()) == sorted([b"one", b"\\xff  [2Jtwo", b"three", b"four", b"five"])
    assert done.stdout == b"['a client without a certificate']\n"
