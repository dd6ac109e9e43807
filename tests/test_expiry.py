"""Certificates that are about to end: the metric, the warnings of both sides, and where their dates are read."""

from __future__ import annotations

import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from asked import trained_in
from authority import Authority
from cryptography import x509
from live import serving
from processes import ran, started
from prometheus_client import CollectorRegistry
from test_certs import certs_of
from world import make_config

from sl_client.transport.expiry import warnings_of_files, warnings_of_server
from sl_client.transport.tls import Tls
from sl_common.host.certificates import DAY_S, WARN_S, ends_of, left_in_words
from sl_server.security.expiry import Expiry, expose
from sl_server.security.issuing import hosts_of, issue, make_ca
from sl_server.security.tls import CertificateFiles, Certificates

NAME = "sl_certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def soon(tmp_path: Path) -> Path:
    """Clients' and the server's own certificates have five days left, the authority years."""
    certs_of(tmp_path / "certs", "--clients", 2, "--days", 5)
    return tmp_path / "certs"


@pytest.mark.parametrize("days", [1, 400, 9000, 36000], ids=lambda days: f"{days} days")
def test_the_end_of_a_certificate_is_what_the_library_says(days: int) -> None:
    """Before and after 2050, where X.509 writes years with two digits and with four."""
    ca = make_ca(36500)
    made = [ca, issue(ca, "c0", days), issue(ca, "server", days, hosts=hosts_of([]))]
    pem = b"text before\n" + b"".join(one.cert_pem for one in made)
    assert ends_of(pem) == [one.certificate.not_valid_after_utc.timestamp() for one in made]


def test_what_is_no_certificate_has_no_end() -> None:
    pem = make_ca().cert_pem
    assert ends_of(b"junk") == []
    for cut in range(40, len(pem) - 60, 16):
        with pytest.raises(ValueError):  # noqa: PT011  (of any kind)
            ends_of(pem[:cut] + b"\n-----END CERTIFICATE-----\n")


def test_words() -> None:
    ends = datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp()
    assert left_in_words(ends, ends - 12.5 * DAY_S) == "expires on 2027-01-31, in 12 days"
    assert left_in_words(ends, ends - 1.5 * DAY_S) == "expires on 2027-01-31, in 1 day"
    assert left_in_words(ends, ends) == "expired on 2027-01-31"


def test_a_server_warns_at_start_and_each_day_until_it_is_renewed(ours: Authority) -> None:
    cert, key = ours.server(days=20)
    told, now = list[str](), [time.time()]
    certificates = Certificates(CertificateFiles(cert=cert, key=key, client_ca=ours.ca))
    registry = CollectorRegistry()
    expose(registry, certificates)
    ends = x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc.timestamp()
    assert registry.get_sample_value(NAME, {"which": "server"}) == ends
    assert registry.get_sample_value(NAME, {"which": "client_ca"}) > ends + 3000 * DAY_S
    expiry = Expiry(certificates, told.append, lambda: now[0])
    for moment, lines in ((0, 0), (5.9, 0), (6.1, 1), (6.9, 1), (7.2, 2), (20.1, 3)):
        now[0] = ends - 20 * DAY_S + moment * DAY_S
        expiry.look()
        assert len(told) == lines, moment
    assert told[0].startswith(f"--cert {cert} expires on ")
    assert ", in 13 days: sl-server certs DIR --renew server" in told[0]
    assert f"--cert {cert} expired on " in told[2]
    ours.server(days=400)
    expiry.look()
    assert len(told) == 3
    assert registry.get_sample_value(NAME, {"which": "server"}) > ends + 300 * DAY_S, (
        "it is read though nobody connects"
    )


def test_of_two_authorities_the_first_to_end_counts(ours: Authority, tmp_path: Path) -> None:
    old = make_ca(30)
    (tmp_path / "both.pem").write_bytes(ours.ca.read_bytes() + old.cert_pem)
    cert, key = ours.server()
    found = Certificates(CertificateFiles(cert=cert, key=key, client_ca=tmp_path / "both.pem")).ends["client_ca"]
    assert found == old.certificate.not_valid_after_utc.timestamp()


def test_without_tls_nothing_ends() -> None:
    registry = CollectorRegistry()
    expose(registry, None)
    assert registry.get_sample_value(NAME, {"which": "server"}) == float("inf")
    Expiry(None, pytest.fail).look()


def test_a_certificate_that_somebody_else_read_first_still_reaches_grpc(ours: Authority) -> None:
    cert, key = ours.server()
    certificates = Certificates(CertificateFiles(cert=cert, key=key))
    assert certificates._newer() is None
    ours.server(days=100)
    certificates.renew()
    assert certificates._newer() is not None
    assert certificates._newer() is None


def test_a_clients_own_files(soon: Path) -> None:
    tls = Tls(ca=soon / "ca.pem", cert=soon / "c0.pem", key=soon / "c0.key")
    now = time.time()
    (told,) = warnings_of_files(tls, now)
    assert told.startswith(f"--cert {soon / 'c0.pem'} expires on ")
    assert ", in 4 days: sl-server certs DIR --renew" in told
    told = warnings_of_files(tls, now + 3650 * DAY_S)
    assert f"--ca {soon / 'ca.pem'} expire" in told[1]
    both = soon / "both.pem"
    both.write_bytes(make_ca(5).cert_pem + (soon / "ca.pem").read_bytes())
    assert warnings_of_files(Tls(ca=both), now) == [], "the old authority is on its way out"


def test_the_servers_certificate_as_a_client_sees_it(ours: Authority) -> None:
    with serving(make_config("parallel", run__clients=2), ours.door(mutual=False)) as live:
        now = time.time()
        (told,) = warnings_of_server(live.address, Tls(ca=ours.ca), now)
        assert told.startswith(f"the certificate of {live.address} expires on ")
        assert warnings_of_server(live.address, Tls(ca=ours.ca), now - WARN_S) == []


def test_both_commands_say_it_and_the_server_shows_it(soon: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(make_config("parallel", run__clients=1, run__rounds=40).to_json())
    pair = "--cert", soon / "server.pem", "--key", soon / "server.key", "--client-ca", soon / "ca.pem"
    to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json"
    ends = x509.load_pem_x509_certificate((soon / "server.pem").read_bytes()).not_valid_after_utc.timestamp()
    own = "--ca", soon / "ca.pem", "--cert", soon / "c0.pem", "--key", soon / "c0.key", "--json"
    with started("sl-server", "run", tmp_path / "run.json", "--out", tmp_path / "out", *pair, *to) as server:
        assert f"--cert {soon / 'server.pem'} expires on " in server.event("warning")["text"]
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.event('metrics')['port']}/metrics", timeout=30)
        with page as answer:
            text = answer.read().decode()
        (line,) = [line for line in text.splitlines() if line.startswith(f'{NAME}{{which="server"}} ')]
        assert float(line.split()[1]) == ends
        address = server.event("listening")["address"]
        with started("sl-client", "run", "--server", address, *own) as client:
            told = [client.event("warning")["why"]]
            client.event("joined")
            assert client.end() == 0, client.err
            told = [event["why"] for event in client.events if event["event"] == "warning"]
        assert server.end() == 0, server.err
    assert f"--cert {soon / 'c0.pem'} expires on " in told[0]
    assert told[1:] == [
        f"the certificate of {address} {left_in_words(ends, time.time())}: its operator has to renew it"
    ]


def test_a_server_that_answers_says_it_too(soon: Path, tmp_path: Path) -> None:
    trained_in(tmp_path / "run", make_config("splitfed_v1", run__rounds=1))
    pair = "--cert", soon / "server.pem", "--key", soon / "server.key"
    words = "serve", tmp_path / "run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json"
    with started("sl-server", *words, *pair) as server:
        assert f"--cert {soon / 'server.pem'} expires on " in server.event("warning")["text"]
        with urllib.request.urlopen(f"http://127.0.0.1:{server.event('metrics')['port']}/metrics", timeout=30) as page:
            assert f'{NAME}{{which="client_ca"}} +Inf\n' in page.read().decode()
        asked = "predict", "--test", 4, "--cache", tmp_path, "--ca", soon / "ca.pem"
        client = ran("sl-client", *asked, "--server", server.event("listening")["address"])
        assert client.code == 0, client.err
