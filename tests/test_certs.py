"""`sl-server certs`: what it writes can be used and verified, keys are their owner's alone, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import copied, every_crash
from typer.testing import CliRunner

from sl_common.errors import ConfigError
from sl_common.host.extras import how_to_install
from sl_common.host.locks import sole_writer
from sl_server.cli.application import app
from sl_server.security import certificates as certs
from sl_server.security import issuing


def certs_of(*words: object) -> str:
    """Output of the command in this process. Raises what it raises."""
    result = CliRunner().invoke(app, ["certs", *map(str, words)], env={"COLUMNS": "80"}, catch_exceptions=False)
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def verified(folder: Path, name: str, *how: str) -> str:
    """What openssl says."""
    assert shutil.which("openssl"), "install openssl: apt-get install openssl"
    command = ["openssl", "verify", "-x509_strict", "-CAfile", folder / "ca.pem", *how, folder / f"{name}.pem"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "new" / "folder"
    certs_of(folder, "--clients", 2, "--host", "gpu.example.org", "--host", "192.0.2.7", "--host", "2001:db8::1")
    return folder


def test_what_is_made(made: Path) -> None:
    names = ("ca", "server", "c0", "c1")
    assert set(files(made)) == {f"{name}.{kind}" for name in names for kind in ("pem", "key")} | {"revoked.pem"}
    for name in names:
        assert stat.S_IMODE((made / f"{name}.key").stat().st_mode) == 0o600
        assert b"PRIVATE KEY" not in (made / f"{name}.pem").read_bytes()


def test_openssl_verifies_each_for_its_purpose_alone(made: Path) -> None:
    for name, purpose, other in (("server", "sslserver", "sslclient"), ("c0", "sslclient", "sslserver")):
        assert verified(made, name, "-purpose", purpose).endswith(f"{name}.pem: OK\n")
        assert "unsuitable certificate purpose" in verified(made, name, "-purpose", other)


@pytest.mark.parametrize("host", ["localhost", "gpu.example.org", socket.gethostname()])
def test_the_servers_names(made: Path, host: str) -> None:
    assert verified(made, "server", "-verify_hostname", host).endswith(": OK\n")
    assert "hostname mismatch" in verified(made, "server", "-verify_hostname", "elsewhere.example.org")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::1"])
def test_the_servers_addresses(made: Path, address: str) -> None:
    assert verified(made, "server", "-verify_ip", address).endswith(": OK\n")


def test_a_clients_certificate_cannot_sign_another(made: Path, tmp_path: Path) -> None:
    key = certs.serialization.load_pem_private_key((made / "c0.key").read_bytes(), None)
    certificate = certs.x509.load_pem_x509_certificate((made / "c0.pem").read_bytes())
    forged = issuing.issue(issuing.Issued(certificate=certificate, key=key), "c1", 10)
    (tmp_path / "forged.pem").write_bytes(forged.cert_pem)
    shutil.copy(made / "ca.pem", tmp_path)
    assert "invalid CA certificate" in verified(tmp_path, "forged", "-untrusted", str(made / "c0.pem"))


def test_common_names_and_days(tmp_path: Path) -> None:
    certs_of(tmp_path, "--name", "Gerät 7", "--name", "north.1", "--days", 30)
    assert {"Gerät 7.pem", "north.1.key"} <= set(files(tmp_path))
    command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "utf8,-esc_msb", "-checkend"]
    for seconds, code in ((29 * 86400, 0), (31 * 86400, 1)):
        done = subprocess.run([*command, str(seconds), "-in", tmp_path / "Gerät 7.pem"], capture_output=True, text=True)
        assert done.returncode == code
        assert "CN=Gerät 7" in done.stdout.replace(" = ", "=")


def test_nothing_is_overwritten(made: Path, tmp_path: Path) -> None:
    before = files(made)
    for words, told in (
        (("--clients", 2), r"ca.pem exists and is not overwritten.*--add makes further clients"),
        (("--clients", 3, "--add"), "c0.pem exists and is not overwritten"),
    ):
        with pytest.raises(ConfigError, match=told):
            certs_of(made, *words)
    assert files(made) == before, "nothing is written if anything is in the way"
    (tmp_path / "c1.key").write_text("mine")
    with pytest.raises(ConfigError, match=r"c1\.key exists and is not overwritten"):
        certs_of(tmp_path, "--clients", 2)
    assert files(tmp_path) == {"c1.key": b"mine"}


def test_further_clients_and_a_new_server_by_the_same_authority(tmp_path: Path) -> None:
    certs_of(tmp_path, "--clients", 1)
    before = files(tmp_path)
    certs_of(tmp_path, "--add", "--name", "late")
    assert files(tmp_path).keys() - before.keys() == {"late.pem", "late.key"}
    assert verified(tmp_path, "late").endswith(": OK\n")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
    certs_of(tmp_path, "--add", "--host", "new.example.org")
    assert verified(tmp_path, "server", "-verify_hostname", "new.example.org").endswith(": OK\n")
    after = files(tmp_path)
    assert {name: after[name] for name in before if not name.startswith("server")} == {
        name: data for name, data in before.items() if not name.startswith("server")
    }


@pytest.mark.parametrize("add", [False, True])
def test_a_command_that_is_killed_leaves_pairs_or_is_told_of(tmp_path: Path, add: bool) -> None:
    """At every write and rename: no certificate without its key, no authority without the rest, and the next command says what lies there."""
    out, before = tmp_path / "out", tmp_path / "before"
    if add:
        certs_of(before, "--clients", 1)
    before.mkdir(exist_ok=True)
    name = "late" if add else "c0"

    def act() -> None:
        list(certs.CertificateFolder(out).fill([name], [], 30, add=add))

    told = 0
    for _ in every_crash(act, lambda: copied(before, out)):
        for path in out.glob("*.pem"):
            assert path.stem == "revoked" or path.with_suffix(".key").exists()
        if add or (out / "ca.pem").exists():
            assert {"ca.key", "revoked.pem", "server.pem", "server.key"} <= set(files(out))
        left = sorted(path.name for path in out.glob("[!.]*") if not (before / path.name).exists())
        if not left:
            act()
            assert not list(out.glob(".*"))
            assert verified(out, name).endswith(": OK\n")
            continue
        told += 1
        cut_short = (
            "" if (out / "late.pem" if add else out / "ca.pem").exists() else ".*as if a command .* had been cut short"
        )
        with pytest.raises(ConfigError, match=rf"({'|'.join(left)}) exists and is not overwritten: .*{cut_short}"):
            act()
    assert told


def test_two_revocations_at_once_are_both_on_the_list(tmp_path: Path) -> None:
    """One is refused while the other is at it, and nothing is lost."""
    certs_of(tmp_path, "--clients", 2)
    with sole_writer(tmp_path, "certs", keep=False), pytest.raises(ConfigError, match="in use by process"):
        certs_of(tmp_path, "--revoke", "c0")
    certs_of(tmp_path, "--revoke", "c0")
    certs_of(tmp_path, "--revoke", "c1")
    listed = certs.x509.load_pem_x509_crl((tmp_path / "revoked.pem").read_bytes())
    assert len(list(listed)) == 2
    assert not list(tmp_path.glob(".*"))


MISTAKES = {
    "no authority": (("--add", "--clients", 1), r"--add: there is no .*ca\.pem to sign with"),
    "reserved": (("--name", "server"), "--name 'server' is taken"),
    "the list's": (("--name", "revoked"), "--name 'revoked' is taken"),
    "twice": (("--name", "a", "--name", "a"), "--name 'a' is taken"),
    "a path": (("--name", "../a"), "1 to 64 printable characters without '/'"),
    "empty": (("--name", ""), "1 to 64 printable"),
    "too long": (("--name", "ä" * 40), "cannot be in a certificate"),
    "counts": (("--clients", 3, "--name", "a"), "--clients 3 and 1 times --name"),
    "a port": (("--host", "gpu:50051"), "--host 'gpu:50051': write a host name or an address, without a port"),
    "no name": (("--host", ""), "--host ''"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_writes_nothing(tmp_path: Path, what: str) -> None:
    words, told = MISTAKES[what]
    with pytest.raises(ConfigError, match=told):
        certs_of(tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_a_damaged_authority_signs_nothing(tmp_path: Path) -> None:
    certs_of(tmp_path / "a")
    certs_of(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "ca.key", tmp_path / "a" / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of .*ca\.pem"):
        certs_of(tmp_path / "a", "--add", "--clients", 1)
    (tmp_path / "a" / "ca.key").write_text("no key")
    with pytest.raises(ConfigError, match="are not an authority"):
        certs_of(tmp_path / "a", "--add", "--clients", 1)
    (tmp_path / "a" / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"--add: .*ca\.key: No such file"):
        certs_of(tmp_path / "a", "--add", "--clients", 1)


def test_a_key_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while it is written: it is opened with its mode, under any umask."""
    seen: dict[str, tuple[int, int]] = {}
    opened = os.open

    def watching(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(path, flags, mode)
        found = os.fstat(descriptor)
        seen[Path(path).name] = stat.S_IMODE(found.st_mode), found.st_size
        return descriptor

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "open", watching)
        certs_of(tmp_path, "--clients", 1)
    finally:
        os.umask(before)
    keys = {name.removeprefix(".").rsplit(".", 2)[0]: mode for name, mode in seen.items() if ".key." in name}
    assert keys == dict.fromkeys(("ca.key", "server.key", "c0.key"), (0o600, 0))


@pytest.mark.parametrize("link", [True, False])
def test_what_appears_meanwhile_is_not_overwritten_either(tmp_path: Path, link: bool) -> None:
    steps = certs.CertificateFolder(tmp_path / "new").fill(["c0"], [], 10, add=False)
    next(steps)
    intruder, mine = tmp_path / "new" / "c0.key", tmp_path / "mine"
    (mine if link else intruder).write_text("mine")
    if link:
        intruder.symlink_to(mine)
    with pytest.raises(ConfigError, match=r"c0\.key: File exists"):
        list(steps)
    assert intruder.read_text() == "mine"


def test_what_it_says(tmp_path: Path) -> None:
    said = certs_of(tmp_path / "a", "--clients", 1, "--host", "gpu.example.org")
    for line in ("ca.key       keep it offline", "server.key   to the server, secret", "c0.pem       to client c0"):
        assert line in said
    assert f"--cert {tmp_path}/a/server.pem --key {tmp_path}/a/server.key --client-ca {tmp_path}/a/ca.pem" in said
    assert "sl-client run --server gpu.example.org:50051" in said
    found = json.loads(certs_of(tmp_path / "b", "--clients", 1, "--json"))
    assert {Path(file["path"]).name for file in found["files"]} == set(files(tmp_path / "b"))


def test_without_cryptography_it_says_what_to_install(tmp_path: Path) -> None:
    """As on a plain install: the rest of the server does not need it."""
    code = "import sys; sys.modules['cryptography'] = None; from sl_server.cli.application import main; main()"
    command = [sys.executable, "-c", code, "certs", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert how_to_install("certs") in done.stderr
    assert "Traceback" not in done.stderr
