"""Certificates that are renewed, and an authority that takes the place of another, before real handshakes of a server that goes on."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashes import every_crash
from cryptography import x509
from live import LiveServer, serving
from test_certs import certs_of, files, verified
from world import make_config

from sl_client.transport.access import Access
from sl_client.transport.doctor import examine
from sl_client.transport.tls import Tls
from sl_common.errors import ConfigError, CutlayerError
from sl_server.security import renewal
from sl_server.security.certificates import CertificateFolder
from sl_server.security.credentials import make_credentials
from sl_server.security.revocation import RevocationList


def one(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def role(certificate: x509.Certificate) -> list[object]:
    kinds = (x509.SubjectAlternativeName, x509.ExtendedKeyUsage, x509.BasicConstraints, x509.KeyUsage)
    return [certificate.subject, certificate.public_key()] + [
        (found.critical, found.value) for found in certificate.extensions if isinstance(found.value, kinds)
    ]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    certs_of(tmp_path / "made", "--clients", 2, "--host", "gpu.example.org", "--days", 30)
    return tmp_path / "made"


# --- one certificate


@pytest.mark.parametrize("name", ["server", "c0"])
def test_a_renewed_certificate_is_the_same_with_other_dates(made: Path, name: str) -> None:
    before, old = files(made), one(made / f"{name}.pem")
    said = certs_of(made, "--renew", name, "--days", 300)
    new = one(made / f"{name}.pem")
    assert f"holds until {new.not_valid_after_utc:%Y-%m-%d}" in said
    assert (role(new), new.serial_number == old.serial_number) == (role(old), False)
    assert (new.not_valid_after_utc - old.not_valid_after_utc).days in (269, 270)
    changed = {path for path, data in before.items() if (made / path).read_bytes() != data}
    assert changed == {f"{name}.pem"}, "a server that reads the pair sees no half of it"
    purpose = "sslserver" if name == "server" else "sslclient"
    assert verified(made, name, "-purpose", purpose).endswith(": OK\n")
    assert not list(made.glob(".*"))


def test_whoever_is_revoked_is_so_with_every_certificate_of_its_key(made: Path) -> None:
    papers = [(made / "c0.pem").read_bytes()]
    for _ in range(2):
        certs_of(made, "--renew", "c0", "--days", 300)
        papers.append((made / "c0.pem").read_bytes())
    certs_of(made, "--revoke", "c0")
    revoked = RevocationList(made / "revoked.pem", made / "ca.pem")
    assert [revoked.holds(pem) for pem in papers] == [True] * 3
    assert not revoked.holds((made / "c1.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"c0\.pem is revoked, and so is its key: .*--add"):
        certs_of(made, "--renew", "c0")


MISTAKES = {
    "nobody": (("--renew", "c9"), r"--renew c9: .*c9\.pem: No such file"),
    "the authority": (("--renew", "ca"), "--renew-ca"),
    "one of two": (("--renew", "c0", "--renew", "../c1"), "no name of a certificate"),
    "beside others": (("--renew", "c0", "--clients", 1), "--renew goes alone"),
    "two of them": (("--renew", "c0", "--revoke", "c1"), "--revoke goes alone: .*--renew"),
    "foreign": (("--renew", "foreign"), "not of this authority"),
    "junk": (("--renew", "junk"), "not of this authority, or damaged"),
    "another's": (("--renew", "copy"), r"copy\.pem is of c0"),
    "no key": (("--renew", "c0", "--renew", "keyless"), r"keyless\.key: No such file"),
    "nothing to drop": (("--drop-ca",), "there is one authority"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_changes_nothing(made: Path, tmp_path: Path, what: str) -> None:
    certs_of(tmp_path / "other", "--clients", 1)
    for source, target in ((tmp_path / "other" / "c0", "foreign"), (made / "c0", "copy"), (made / "c0", "keyless")):
        for kind in ("pem",) if target == "keyless" else ("pem", "key"):
            shutil.copy(source.with_suffix(f".{kind}"), made / f"{target}.{kind}")
    (made / "junk.pem").write_text("junk")
    before = files(made)
    words, told = MISTAKES[what]
    with pytest.raises(ConfigError, match=told):
        certs_of(made, *words)
    assert files(made) == before


def test_no_certificate_outlives_its_authority(made: Path) -> None:
    certs_of(made, "--renew", "c0", "--days", 36500)
    assert one(made / "c0.pem").not_valid_after_utc <= one(made / "ca.pem").not_valid_after_utc


# --- the authority


STEPS = {
    "renew": lambda here: renewal.renew(here, ["server", "c0"], 30),
    "renew_ca": lambda here: renewal.renew_ca(here, 30),
}


@pytest.mark.parametrize("step", [*STEPS, "drop_ca"])
def test_a_step_that_is_killed_leaves_a_folder_of_use(made: Path, tmp_path: Path, step: str) -> None:
    """At every write and rename: certificates are of a trusted authority and pairs fit, and the same command once more ends it."""
    here, before = CertificateFolder(made), tmp_path / "before"
    act = STEPS.get(step, renewal.drop_ca)
    if step == "drop_ca":
        renewal.renew_ca(here, 30)
        renewal.renew(here, ["server", "c0", "c1"], 30)
    shutil.copytree(made, before)
    crashes = 0
    for _ in every_crash(lambda: act(here), lambda: again(before, made)):
        crashes += 1
        for name in ("server", "c0", "c1"):
            assert verified(made, name).endswith(": OK\n"), name
        authorities = here.authorities("test")
        assert RevocationList(made / "revoked.pem", made / "ca.pem")
        if len(authorities) == {"renew": 1, "renew_ca": 1, "drop_ca": 2}[step]:  # or it was done but for the last word
            act(here)
        assert verified(made, "server").endswith(": OK\n")
    assert crashes > 3


def again(before: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)


class Waiting:
    """A server that takes part in the change by what is copied to it, as an operator would."""

    def __init__(self, live: LiveServer, here: Path) -> None:
        self.live, self._here = live, here

    def get(self, made: Path, *names: str) -> None:
        for name in names:
            new = self._here / f"{name}.new"
            shutil.copy(made / name, new)
            new.replace(self._here / name)

    def why_not(self, made: Path, name: str, ca: Path) -> str:
        """Why a client with these files is not let in; empty if it is. It connects anew."""
        tls = Tls(ca=ca, cert=made / f"{name}.pem", key=made / f"{name}.key")
        try:
            examine(self.live.address, Access(tls=tls), as_json=True)
        except CutlayerError as error:
            return str(error)
        return ""


@pytest.fixture
def waiting(made: Path, tmp_path: Path) -> Iterator[Waiting]:
    here = tmp_path / "server"
    here.mkdir()
    for name in ("ca.pem", "server.pem", "server.key", "revoked.pem"):
        shutil.copy(made / name, here / name)
    pair = {"cert": here / "server.pem", "key": here / "server.key"}
    door = make_credentials("127.0.0.1:0", **pair, client_ca=here / "ca.pem", revoked=here / "revoked.pem")
    with serving(make_config("parallel", run__clients=3), door) as live:
        yield Waiting(live, here)


def test_a_change_of_authority_under_a_server_that_goes_on(made: Path, tmp_path: Path, waiting: Waiting) -> None:
    old = tmp_path / "old"  # devices that nobody has come to yet
    shutil.copytree(made, old)
    certs_of(made, "--renew-ca")
    assert len(x509.load_pem_x509_certificates((made / "ca.pem").read_bytes())) == 2
    assert stat.S_IMODE((made / "previous" / "ca.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="is being replaced already: --drop-ca"):
        certs_of(made, "--renew-ca")
    waiting.get(made, "revoked.pem", "ca.pem")
    assert waiting.why_not(old, "c0", old / "ca.pem") == "", "the old ones go on"
    certs_of(made, "--renew", "c0")
    assert waiting.why_not(made, "c0", made / "ca.pem") == "", "a new client, the server's certificate is old"
    certs_of(made, "--renew", "server")
    waiting.get(made, "server.pem")
    assert waiting.why_not(made, "c0", made / "ca.pem") == ""
    assert waiting.why_not(old, "c0", made / "ca.pem") == "", (
        "a device that has the new bundle, and its own file not yet"
    )
    assert "was not signed by the CA" in waiting.why_not(old, "c0", old / "ca.pem")
    with pytest.raises(ConfigError, match="still of the old authority: c1; --renew them first"):
        certs_of(made, "--drop-ca")
    certs_of(made, "--revoke", "c1")  # by the authority that signed it
    waiting.get(made, "revoked.pem")
    assert "was revoked" in waiting.why_not(old, "c1", made / "ca.pem")
    certs_of(made, "--drop-ca")
    waiting.get(made, "ca.pem", "revoked.pem")
    assert "another CA than its --client-ca signed it" in waiting.why_not(old, "c0", made / "ca.pem")
    assert waiting.why_not(made, "c0", made / "ca.pem") == ""
    assert {path.name for path in (made / "previous").iterdir()} == set()
    assert not [text for text in waiting.live.warnings if "stays in use" in text]


def test_a_list_that_one_of_two_authorities_has_lost_is_not_taken(made: Path) -> None:
    certs_of(made, "--revoke", "c1")
    alone = (made / "revoked.pem").read_bytes()
    c1 = (made / "c1.pem").read_bytes()
    certs_of(made, "--renew-ca")
    both, told = (made / "revoked.pem").read_bytes(), list[str]()
    revoked = RevocationList(made / "revoked.pem", made / "ca.pem")
    revoked.attach(told.append)
    (made / "revoked.pem").write_bytes(both.removesuffix(alone))
    assert revoked.holds(c1)
    assert "holds no list of CN=Cutlayer CA" in told[0]
    (made / "revoked.pem").write_bytes(both + alone)
    assert revoked.holds(c1)
    assert "holds two lists of CN=Cutlayer CA" in told[1]
    certs_of(made, "--renew", "server", "--renew", "c0")
    (made / "revoked.pem").write_bytes(both)
    certs_of(made, "--drop-ca")
    assert not revoked.holds(c1), "whose authority nobody trusts any more"
    assert len(told) == 2
