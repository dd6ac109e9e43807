"""Proxies of the environment: what goes through one, what never does, and what is said and refused."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from asked import answering, trained_in
from authority import TOKENS, Authority, write_tokens
from connect import HOST, ConnectProxy, proxying
from live import ClientThread, LiveServer, serving
from processes import ROOT, ran
from world import make_config

from sl_client.transport.access import Access, make_access
from sl_client.transport.proxy import EXEMPTIONS, PROXY_VARIABLES, Proxy, UnusableProxy, _local_names, find_proxy
from sl_client.transport.stream import GrpcStream
from sl_common.errors import ConfigError, PeerLost, Refused
from sl_server.security.credentials import make_credentials

ALONE = {"run__clients": 1, "run__rounds": 1}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, *EXEMPTIONS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.toml")


@pytest.fixture
def plain() -> Iterator[tuple[LiveServer, ConnectProxy]]:
    with serving(make_config("parallel", **ALONE)) as live, proxying(live.address) as proxy:
        yield live, proxy


def access(server: str, **options: object) -> Access:
    return make_access(server, **({"ca": None, "cert": None, "key": None, "token": None, "insecure": False} | options))


def took_part(address: str, how: Access) -> ClientThread:
    """A whole run."""
    client = ClientThread(address, partial(GrpcStream, access=how))
    client.join(60)
    assert client.error is None
    assert client.bye.finished
    return client


# --- this machine


@pytest.mark.parametrize("variable", [*PROXY_VARIABLES, "GRPC_ADDRESS_HTTP_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nothing_for_this_machine_goes_through_a_proxy(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    door = make_credentials("127.0.0.1:0", tokens=tokens)
    with serving(make_config("parallel", **ALONE), door) as live, proxying(live.address) as proxy:
        by_address = variable.startswith("GRPC")
        monkeypatch.setenv(variable, proxy.address if by_address else f"http://{proxy.address}")
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8")
        server = f"{host}:{live.address.rpartition(':')[2]}"
        how = access(server, token=TOKENS["c0"])
        took_part(server, how)
    assert (proxy.heads, proxy.seen, how.cautions) == ([], b"", ())


def test_the_installed_client_keeps_its_token_on_this_machine(tokens: Path) -> None:
    door = make_credentials("127.0.0.1:0", tokens=tokens)
    with serving(make_config("parallel", **ALONE), door) as live, proxying(live.address) as proxy:
        env = {"http_proxy": f"http://{proxy.address}", "SL_TOKEN": TOKENS["c0"]}
        checked = ran("sl-client", "doctor", "--server", live.address, env=env)
        process = ran("sl-client", "run", "--server", live.address, env=env)
    assert (checked.code, process.code, proxy.heads) == (0, 0, [])
    assert "proxy" not in checked.out + process.out


def test_the_containers_check_of_its_own_server(plain: tuple[LiveServer, ConnectProxy], monkeypatch) -> None:
    live, proxy = plain
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("SL_LISTEN", live.address)
    monkeypatch.delenv("SL_CERT", raising=False)
    health = runpy.run_path(str(ROOT / "docker" / "health.py"))
    assert (health["server"](), proxy.heads) == (None, [])


def test_the_containers_check_of_a_client_behind_a_proxy(plain: tuple[LiveServer, ConnectProxy], monkeypatch) -> None:
    """Its connection is one to the proxy; one to the server's own port, which this process has too, is no proof."""
    live, proxy = plain
    health = runpy.run_path(str(ROOT / "docker" / "health.py"))
    monkeypatch.setenv("SL_SERVER", f"{HOST}:7")
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    assert health["client"]() == f"no connection to {HOST}:7"
    how = access(proxy.server, insecure=True)
    with how.proxy.connect(proxy.server, 5.0):
        assert health["client"]() is None
    assert live.address


# --- elsewhere


def test_plaintext_through_a_proxy_is_refused_by_name_unless_it_is_meant(
    plain: tuple[LiveServer, ConnectProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, proxy = plain
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    for options in ({}, {"token": TOKENS["c0"]}, {"token": TOKENS["c0"], "insecure": True}):
        with pytest.raises(ConfigError) as error:
            access(proxy.server, **options)
        for told in (f"through the proxy http://{proxy.address} of https_proxy", f"no_proxy={HOST}", "--ca"):
            assert told in str(error.value)
        assert TOKENS["c0"] not in str(error.value)
    assert proxy.heads == []
    how = access(proxy.server, insecure=True)
    (caution,) = how.cautions
    assert f"through the proxy http://{proxy.address} of https_proxy: it reads labels and activations" in caution
    took_part(proxy.server, how)
    assert proxy.heads[0].startswith(f"CONNECT {proxy.server} HTTP/1.1\r\n")
    assert len(proxy.seen) > 10_000
    assert live.facts


def test_tls_with_a_token_goes_through_and_shows_neither(
    ours: Authority, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = ours.server("gpu", hosts=[HOST])
    door = make_credentials("127.0.0.1:0", cert=cert, key=key, tokens=tokens)
    with serving(make_config("parallel", **ALONE), door) as live, proxying(live.address) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        how = access(proxy.server, ca=ours.ca, token=TOKENS["c0"])
        seen = how.tls.look(proxy.server)
        assert seen is not None
        assert seen[0].names == (HOST,)
        took_part(proxy.server, how)
    assert len(proxy.seen) > 10_000
    assert TOKENS["c0"].encode() not in proxy.seen
    assert how.cautions[0].startswith(
        f"{proxy.server} is reached through the proxy http://{proxy.address} of http_proxy"
    )


def test_the_cause_of_no_connection_is_looked_for_through_the_proxy(
    ours: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else: the name is none that this machine could look up."""
    foreign = Authority(tmp_path / "foreign")
    config, door = make_config("parallel", **ALONE), ours.door(mutual=False)
    with serving(config, door) as live, proxying(live.address) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        for how, told in (
            (access(proxy.server, ca=foreign.ca), "was not signed by the CA"),
            (access(proxy.server, insecure=True), "speaks TLS: name the CA"),
        ):
            client = ClientThread(proxy.server, partial(GrpcStream, access=how))
            client.join(45)
            assert isinstance(client.error, Refused)
            assert told in client.error.reason


def test_a_proxy_that_refuses_is_named_by_grpcs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxying("127.0.0.1:1", 407) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        how = access(proxy.server, insecure=True)
        client = ClientThread(proxy.server, partial(GrpcStream, access=how), retry_s=0.5)
        client.join(45)
    assert isinstance(client.error, PeerLost)
    assert "407" in str(client.error)


def test_credentials_reach_the_proxy_and_no_text(
    plain: tuple[LiveServer, ConnectProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = plain
    monkeypatch.setenv("http_proxy", f"http://edge:geh%40eim@{proxy.address}")
    how = access(proxy.server, insecure=True)
    how.proxy.connect(proxy.server, 5.0).close()  # while the server is there: it goes with the run
    took_part(proxy.server, how)
    told = {line for head in proxy.heads for line in head.split("\r\n") if line.startswith("Proxy-Authorization")}
    assert told == {"Proxy-Authorization: Basic ZWRnZTpnZWhAZWlt"}
    assert "geh" not in f"{how!r}{how.cautions}{how.proxy}"


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_the_installed_client_says_its_proxy_and_refuses_plaintext(
    plain: tuple[LiveServer, ConnectProxy], command: str
) -> None:
    _, proxy = plain
    env = {"http_proxy": f"http://{proxy.address}", "SL_JSON": "1"}
    process = ran("sl-client", command, "--server", proxy.server, env=env)
    assert (process.code, proxy.heads) == (2, [])
    assert f"through the proxy http://{proxy.address} of http_proxy" in process.err
    process = ran("sl-client", command, "--server", proxy.server, "--insecure", env=env)
    assert (process.code, len(proxy.heads) > 0) == (0, True)
    assert f"http://{proxy.address}" in str(process.events[0])


def test_predictions_go_the_same_ways(tmp_path: Path) -> None:
    trained_in(tmp_path / "run", make_config("splitfed_v1", run__rounds=1))
    with answering(tmp_path / "run") as live, proxying(live.address) as proxy:
        env = {"http_proxy": f"http://{proxy.address}"}
        here = ran("sl-client", "predict", "--test", 8, "--server", live.address, "--cache", tmp_path, env=env)
        assert (here.code, here.err, proxy.heads) == (0, "", [])
        there = ("sl-client", "predict", "--test", 8, "--server", proxy.server, "--cache", tmp_path)
        assert ran(*there, env=env).code == 2
        assert proxy.heads == []
        meant = ran(*there, "--insecure", env=env)
        assert (meant.code, f"through the proxy http://{proxy.address}" in meant.err) == (0, True)
        before = len(proxy.heads)
        around = ran(*there, "--insecure", "--retry", 0, env=env | {"no_proxy": HOST})
        assert (around.code, len(proxy.heads)) == (4, before)


# --- which one: gRPC's rules, and what users expect beyond them


def test_the_first_variable_that_is_set_counts_and_empty_means_none() -> None:
    every = {name: f"http://{name.replace('_', '-')}:1" for name in PROXY_VARIABLES}
    for number, name in enumerate(PROXY_VARIABLES):
        left = {one: url for one, url in every.items() if one in PROXY_VARIABLES[number:]}
        assert find_proxy("gpu.invalid:1", left).variable == name
    assert find_proxy("gpu.invalid:1", every | {"grpc_proxy": ""}) is None
    assert find_proxy("gpu.invalid:1", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}) is None


HERE = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1", "localhost.:1", "a.localhost:1"]
HERE += ["[::ffff:127.0.0.1]:1", "0.0.0.0:1", "unix:/run/x"]


@pytest.mark.parametrize("server", HERE)
def test_addresses_of_this_machine(server: str) -> None:
    assert find_proxy(server, {"http_proxy": "http://p:1"}) is None


EXEMPT = [
    ("gpu.example.org:1", "gpu.example.org"),
    ("gpu.example.org:1", "a, GPU.example.org ,b"),
    ("gpu.example.org:1", "example.org"),
    ("gpu.example.org:1", ".example.org"),
    ("gpu.example.org:1", "*.example.org"),
    ("gpu.example.org:1", "a *"),
    ("gpu.example.org:1", "gpu.example.org:1"),
    ("192.0.2.7:1", "192.0.2.7"),
    ("192.0.2.7:1", "192.0.2.0/24"),
    ("192.0.2.7:1", "192.0.2.7:1"),
    ("[2001:db8::7]:1", "2001:db8::7"),
    ("[2001:db8::7]:1", "[2001:db8::7]"),
    ("[2001:db8::7]:1", "2001:db8::/32"),
]
PROXIED = [
    ("gpu.example.org:1", ""),
    ("gpu.example.org:1", "ample.org,pu.example.org"),
    ("gpu.example.org:1", "gpu.example.org:2"),
    ("192.0.2.7:1", "192.0.3.0/24,2.0.2.7,192.0.2.,2001:db8::/32,192.0.2.0/x"),
]


@pytest.mark.parametrize("variable", EXEMPTIONS)
@pytest.mark.parametrize(("server", "listed", "direct"), [(*e, True) for e in EXEMPT] + [(*p, False) for p in PROXIED])
def test_no_proxy(server: str, listed: str, direct: bool, variable: str) -> None:
    assert (find_proxy(server, {"http_proxy": "http://p:1", variable: listed}) is None) == direct


@pytest.mark.parametrize("url", ["p:1", "//p:1", "https://p:1", "socks5://u:s3cret@p:1", "http://", "http://p:x"])
def test_a_proxy_that_grpc_cannot_use_is_said_and_gone_around(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnusableProxy, match="http_proxy"):
        find_proxy("192.0.2.7:1", {"http_proxy": url})
    monkeypatch.setenv("http_proxy", url)
    how = access("192.0.2.7:1", insecure=True)
    assert (how.proxy, "192.0.2.7:1 is reached directly" in how.cautions[0]) == (None, True)
    assert "s3cret" not in how.cautions[0]


def test_a_proxys_address_is_written_as_a_url() -> None:
    assert str(Proxy(variable="http_proxy", host="::1", port=2, credentials="u:s3cret")) == "http://[::1]:2"
    assert find_proxy("192.0.2.7:1", {"http_proxy": "http://p"}).port == 443


def test_names_of_this_machine_in_its_own_list(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "# x\n127.0.1.1 edge Edge.lan # self\n::1 edge\n127.0.0.1 both\n192.0.2.1 both gpu\njunk j\n\n"
    )
    assert _local_names(tmp_path / "hosts") == {"edge", "edge.lan"}
    assert _local_names(tmp_path / "none") == set()
