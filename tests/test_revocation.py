"""Locking a client out of a run that goes on: its certificate on the authority's list, or its token's line taken out."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from authority import TOKENS, write_tokens
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from live import ClientThread, serving
from processes import Process, ran, started
from test_certs import certs_of, files
from world import make_config

from sl_client.transport.access import Access
from sl_client.transport.stream import GrpcStream
from sl_common.errors import ConfigError, Refused
from sl_server.core.identity import UNPROVEN
from sl_server.security.credentials import make_credentials
from sl_server.security.revocation import RevocationList
from sl_server.simulation.simulation import Simulation

CONFIG = make_config("splitfed_v1", run__clients=3, run__rounds=2)


def simulated_sha() -> str:
    simulation = Simulation(CONFIG)
    simulation.run()
    return simulation.coordinator.weights_sha256()


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    certs_of(tmp_path / "certs", "--clients", 3)
    return tmp_path / "certs"


def openssl(*words: object) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    return done.stdout + done.stderr


# --- the list


def test_the_list_is_one_that_openssl_takes(certs: Path) -> None:
    crl, ca = certs / "revoked.pem", certs / "ca.pem"
    check = "verify", "-crl_check", "-CAfile", ca, "-CRLfile", crl
    assert "verify OK" in openssl("crl", "-in", crl, "-CAfile", ca, "-noout")
    assert openssl(*check, certs / "c1.pem").endswith("c1.pem: OK\n")
    said = certs_of(certs, "--revoke", "c1")
    assert "c1.pem: serial number " in said
    assert "verify OK" in openssl("crl", "-in", crl, "-CAfile", ca, "-noout")
    assert "certificate revoked" in openssl(*check, certs / "c1.pem")
    certs_of(certs, "--revoke", "c0", "--revoke", "c1")
    assert [openssl(*check, certs / f"c{n}.pem").endswith("OK\n") for n in range(3)] == [False, False, True]


def test_who_is_on_the_list(certs: Path) -> None:
    revoked = RevocationList(certs / "revoked.pem", certs / "ca.pem")
    papers = [(certs / f"c{number}.pem").read_bytes() for number in range(3)]
    assert [revoked.holds(pem) for pem in papers] == [False, False, False]
    certs_of(certs, "--revoke", "c1")
    assert [revoked.holds(pem) for pem in papers] == [False, True, False]
    assert revoked.holds(b"no certificate"), "what cannot be read is not let in"


def test_a_list_that_is_broken_later_leaves_the_last_good_one(certs: Path) -> None:
    certs_of(certs, "--revoke", "c1")
    revoked, told = RevocationList(certs / "revoked.pem", certs / "ca.pem"), list[str]()
    revoked.attach(told.append)
    (certs / "revoked.pem").write_text("junk")
    assert revoked.holds((certs / "c1.pem").read_bytes())
    assert len(told) == 1
    assert "what was read before stays in use" in told[0]


def made_list(certs: Path, number: int | None, *serials: int) -> bytes:
    """By the authority itself, as other tools would make it."""
    ca = x509.load_pem_x509_certificate((certs / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((certs / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject).last_update(now - timedelta(days=2))
    builder = builder.next_update(now - timedelta(days=1))  # long out of date
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), False)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (4, "has number 4, and one with number 5 was read before: an older list"),
        (0, "has number 0, and one with number 5"),
        (None, "has number None, and one with number 5"),
        (5, "has number 5 as the list before, and revokes other certificates"),
    ],
)
def test_an_older_list_lets_nobody_in_again(certs: Path, number: int | None, why: str) -> None:
    c1 = (certs / "c1.pem").read_bytes()
    serial = x509.load_pem_x509_certificate(c1).serial_number
    path = certs / "revoked.pem"
    path.write_bytes(made_list(certs, 5, serial))
    revoked, told = RevocationList(path, certs / "ca.pem"), list[str]()
    revoked.attach(told.append)
    path.write_bytes(made_list(certs, number))
    assert revoked.holds(c1)
    assert why in told[-1]
    path.write_bytes(made_list(certs, 6))  # a newer one may
    assert not revoked.holds(c1)


def test_lists_without_numbers_are_taken_as_they_come(certs: Path) -> None:
    c1 = (certs / "c1.pem").read_bytes()
    path = certs / "revoked.pem"
    path.write_bytes(made_list(certs, None, x509.load_pem_x509_certificate(c1).serial_number))
    revoked = RevocationList(path, certs / "ca.pem")
    assert revoked.holds(c1)
    path.write_bytes(made_list(certs, None, 1, 2, 3))
    assert not revoked.holds(c1)
    path.write_bytes(made_list(certs, 1, x509.load_pem_x509_certificate(c1).serial_number))
    assert revoked.holds(c1)


def test_only_the_authority_can_make_a_list(certs: Path, tmp_path: Path) -> None:
    certs_of(tmp_path / "other", "--clients", 1)
    with pytest.raises(ConfigError, match=r"was not signed by --client-ca .*certs/ca\.pem"):
        RevocationList(tmp_path / "other" / "revoked.pem", certs / "ca.pem")
    (certs / "revoked.pem").write_bytes((tmp_path / "other" / "revoked.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"is the list of another authority"):
        certs_of(certs, "--revoke", "c1")


def test_a_list_of_an_unknown_version_is_refused(certs: Path) -> None:
    """Its own exception in the library, which fuzzing found."""
    path = certs / "revoked.pem"
    listed = ssl.PEM_cert_to_DER_cert(path.read_text().replace("X509 CRL", "CERTIFICATE"))
    version = listed.index(b"\x02\x01\x01")
    other = listed[: version + 2] + b"\x11" + listed[version + 3 :]
    path.write_text(ssl.DER_cert_to_PEM_cert(other).replace("CERTIFICATE", "X509 CRL"))
    with pytest.raises(ConfigError, match="not a list of revoked certificates"):
        RevocationList(path, certs / "ca.pem")
    with pytest.raises(ConfigError, match="--revoke c0"):
        certs_of(certs, "--revoke", "c0")


MISTAKES = {
    "nobody": (("--revoke", "c9"), r"--revoke: .*c9\.pem: No such file"),
    "the authority": (("--revoke", "ca"), "an authority cannot lock itself out"),
    "one of two": (("--revoke", "c0", "--revoke", "../c1"), "No such file"),
    "beside others": (("--revoke", "c0", "--clients", 1), "--revoke goes alone"),
    "foreign": (("--revoke", "foreign"), "not of this authority"),
    "junk": (("--revoke", "junk"), "not of this authority, or damaged"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_changes_nothing(certs: Path, tmp_path: Path, what: str) -> None:
    certs_of(tmp_path / "other", "--clients", 1)
    (certs / "foreign.pem").write_bytes((tmp_path / "other" / "c0.pem").read_bytes())
    (certs / "junk.pem").write_text("junk")
    before = files(certs)
    words, told = MISTAKES[what]
    with pytest.raises(ConfigError, match=told):
        certs_of(certs, *words)
    assert files(certs) == before


def test_a_list_needs_an_authority(certs: Path) -> None:
    pair = {"cert": certs / "server.pem", "key": certs / "server.key"}
    with pytest.raises(ConfigError, match="--revoked lists certificates of clients, which only --client-ca asks for"):
        make_credentials("127.0.0.1:0", **pair, revoked=certs / "revoked.pem")
    with pytest.raises(ConfigError, match=r"--revoked .*none: No such file"):
        make_credentials("127.0.0.1:0", **pair, client_ca=certs / "ca.pem", revoked=certs / "none")


# --- real processes


class Federation:
    """A server that waits for three clients."""

    def __init__(self, stack: ExitStack, folder: Path, *options: object) -> None:
        self._stack, self.out = stack, folder / "run"
        path = folder / "run.json"
        path.write_text(CONFIG.to_json())
        command = "sl-server", "run", path, "--listen", "127.0.0.1:0", "--out", self.out, "--json"
        self.server = stack.enter_context(started(*command, *options))
        self.address = self.server.event("listening")["address"]

    def client(self, *options: object) -> Process:
        return self._stack.enter_context(started("sl-client", "run", "--server", self.address, "--json", *options))

    def refusals(self) -> list[str]:
        texts = [event["text"] for event in self.server.events if event["event"] == "warning"]
        return [text for text in texts if text.startswith("refused ")]

    def ends_well(self, clients: list[Process]) -> None:
        assert [client.end() for client in clients] == [0] * len(clients)
        assert self.server.end() == 0, self.server.err
        assert json.loads((self.out / "summary.json").read_text())["weights_sha256"] == simulated_sha()


def test_a_revoked_client_is_out_at_once_and_comes_back_with_a_new_certificate(certs: Path, tmp_path: Path) -> None:
    pair = "--cert", certs / "server.pem", "--key", certs / "server.key"

    def papers(name: str) -> list[object]:
        return ["--ca", certs / "ca.pem", "--cert", certs / f"{name}.pem", "--key", certs / f"{name}.key"]

    with ExitStack() as stack:
        mutual = "--client-ca", certs / "ca.pem", "--revoked", certs / "revoked.pem"
        run = Federation(stack, tmp_path, *pair, *mutual)
        clients = []
        for number in range(2):
            clients.append(run.client(*papers(f"c{number}")))
            run.server.event("joined", client=f"c{number}")
        assert ran("sl-server", "certs", certs, "--revoke", "c1").code == 0
        lost = clients.pop()
        assert lost.end() == 3
        assert "this client's certificate was revoked" in lost.err
        again = ran("sl-client", "run", "--server", run.address, *papers("c1"))
        assert (again.code, "this client's certificate was revoked" in again.err) == (3, True)
        assert run.refusals() == ["refused 'c1' at 127.0.0.1 (revoked): this client's certificate was revoked"]
        for name in ("c1.pem", "c1.key"):
            (certs / name).rename(certs / f"old-{name}")
        assert ran("sl-server", "certs", certs, "--add", "--name", "c1").code == 0
        for name in ("c1", "c2"):
            clients.append(run.client(*papers(name)))
            run.server.event("joined", client=name)
        run.ends_well(clients)


def test_a_client_whose_token_is_taken_out_is_out_at_once(tmp_path: Path) -> None:
    """The same door over real streams; only the processes are missing."""
    tokens = write_tokens(tmp_path / "tokens")

    def client(name: str, token: str) -> ClientThread:
        started = ClientThread(live.address, partial(GrpcStream, access=Access(token=token)), name=name)
        until = time.monotonic() + 30
        while name not in live.engine.sessions.by_client:
            assert time.monotonic() < until
            time.sleep(0.02)
        return started

    with serving(CONFIG, make_credentials("127.0.0.1:0", tokens=tokens)) as live:
        clients = [client("c0", TOKENS["c0"]), client("c1", TOKENS["c1"])]
        write_tokens(tokens, {name: token for name, token in TOKENS.items() if name != "c1"})
        lost = clients.pop()
        lost.join(30)
        assert isinstance(lost.error, Refused)
        assert (lost.error.code, lost.error.reason) == ("revoked", f"not admitted any more: {UNPROVEN}")
        renewed = TOKENS | {"c1": "a-new-token-of-c1"}
        write_tokens(tokens, renewed)
        clients += [client("c1", renewed["c1"]), client("c2", renewed["c2"])]
        for one in clients:
            one.join(60)
    assert [one.error for one in clients] == [None] * 3
    assert "lost" not in clients[0].show.events
    assert live.coordinator.weights_sha256() == simulated_sha()
