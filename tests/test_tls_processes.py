"""TLS, certificates and tokens with the installed commands: exit codes, what each side says, what is counted, and a whole run."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from authority import LONG_AGO, TOKENS, Authority, write_tokens
from federation import Federation, sha_of, slow_config
from processes import PATIENCE_S, Process, ran, ran_all, started
from prometheus_client.parser import text_string_to_metric_families
from world import make_config

from sl_server.core.identity import UNPROVEN
from sl_server.simulation.simulation import Simulation

CONFIG = make_config("splitfed_v1", run__clients=2, run__rounds=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything by the command, but for what is wrong on purpose."""
    folder = tmp_path_factory.mktemp("tls")
    assert ran("sl-server", "certs", folder / "certs", "--clients", 2).code == 0
    foreign = Authority(folder / "foreign")
    foreign.client("c0")
    write_tokens(folder / "tokens.toml")
    for name, token in TOKENS.items():
        (folder / f"{name}.token").write_text(token)
    (folder / "run.json").write_text(CONFIG.to_json())
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    """Mutual TLS and tokens, by environment variables alone."""
    certs = folder / "certs"
    env = {"SL_LISTEN": "127.0.0.1:0", "SL_METRICS": "127.0.0.1:0", "SL_OUT": str(folder / "out"), "SL_JSON": "1"}
    env |= {"SL_CERT": str(certs / "server.pem"), "SL_KEY": str(certs / "server.key")}
    env |= {"SL_CLIENT_CA": str(certs / "ca.pem"), "SL_TOKENS": str(folder / "tokens.toml")}
    with started("sl-server", "run", folder / "run.json", env=env) as process:
        yield process


def secure(folder: Path, name: str, token: str = "") -> list[object]:
    certs = folder / "certs"
    own = ["--cert", certs / f"{name}.pem", "--key", certs / f"{name}.key"]
    return ["--ca", certs / "ca.pem", *own, "--token", f"@{folder}/{token or name}.token"]


def rejected(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "sl_rejected_total"]
    return {sample.labels["reason"]: sample.value for sample in samples}


def test_who_is_refused_ends_at_once_and_both_sides_say_why(folder: Path, server: Process) -> None:
    listening = server.event("listening")
    assert listening["tls"] is True
    address, port = listening["address"], server.event("metrics")["port"]
    certs, foreign = folder / "certs", folder / "foreign"
    good = secure(folder, "c0")
    cases: dict[str, tuple[list[object], int, str]] = {
        "plaintext": ([], 3, f"{address} speaks TLS: name the CA of its certificate with --ca"),
        "wrong CA": (["--ca", foreign / "ca.pem", *good[2:]], 3, f"was not signed by the CA in --ca {foreign}/ca.pem"),
        "no certificate": (good[:2], 3, f"{address} wants a client certificate: give --cert and --key"),
        "foreign certificate": (
            [*good[:2], "--cert", foreign / "c0.pem", "--key", foreign / "c0.key"],
            3,
            f"{address} does not take the certificate --cert {foreign}/c0.pem (c0): another CA",
        ),
        "another's name": ([*good, "--id", "c1"], 3, "calls itself 'c1', its certificate is that of 'c0'"),
        "another's token": (secure(folder, "c0", "c1"), 3, UNPROVEN),
        "no token": (good[:6], 3, UNPROVEN),
        "no file": ([*good, "--key", certs / "none.key"], 2, f"--key {certs}/none.key: No such file"),
        "both": ([*good, "--insecure"], 2, "leave one of them out"),
    }
    run = "sl-client", "run", "--server", address, "--retry", 600  # who tries again is not back in time
    done = ran_all({what: (*run, *words) for what, (words, _, _) in cases.items()})
    for what, (_, code, told) in cases.items():
        assert (done[what].code, told in done[what].err) == (code, True), f"{what}: {done[what].err}"
        assert done[what].err.count("\n") == 0, "one line, none of gRPC's"
    for told in (
        "refused a client that speaks plaintext (tls)",
        "refused a client without a certificate (tls)",
        "refused a client that broke the handshake off (tls)",
        "refused a client's certificate (unable to get local issuer certificate) (tls)",
        "refused 'c1' at 127.0.0.1 (identity): this client calls itself 'c1', its certificate is that of 'c0'",
        f"refused 'c0' at 127.0.0.1 (identity): {UNPROVEN}",
    ):
        said = [event["text"] for event in server.events if event["event"] == "warning"]
        assert sum(text.startswith(told) for text in said) == 1, f"{told}: {said}"
    counted = rejected(port)
    assert counted["identity"] == 3
    assert counted["tls"] >= 4
    assert server.err == "", "gRPC's own lines were read"


def test_doctor_sees_certificates_and_is_refused_as_a_run_would_be(folder: Path, server: Process) -> None:
    address = server.event("listening")["address"]
    doctor = "sl-client", "doctor", "--server", address, "--json"
    done = ran_all(
        {
            "good": (*doctor, *secure(folder, "c0")),
            "no token": (*doctor, *secure(folder, "c0")[:6]),
            "no certificate": (*doctor, *secure(folder, "c0")[:2]),
        }
    )
    assert {what: process.code for what, process in done.items()} == {"good": 0, "no token": 3, "no certificate": 3}
    report = json.loads(done["good"].out)
    assert (report["tls"], report["tls_version"]) == (True, "TLSv1.3")
    assert (report["server_subject"], report["client_subject"]) == ("server", "c0")
    assert "localhost" in report["server_names"].split()
    assert report["server_days_left"] == report["client_days_left"] == 364
    assert min(report["round_trip_ms"], report["up_mbit_per_s"], report["down_mbit_per_s"]) > 0
    assert UNPROVEN in done["no token"].err
    assert "wants a client certificate" in done["no certificate"].err


def test_a_whole_run_over_mutual_tls_with_tokens_ends_with_the_simulators_bits(folder: Path, server: Process) -> None:
    """By environment variables on one client, by options on the other; no token is told anywhere."""
    address = server.event("listening")["address"]
    certs = folder / "certs"
    env = {"SL_SERVER": address, "SL_CA": str(certs / "ca.pem"), "SL_TOKEN": TOKENS["c0"], "SL_JSON": "1"}
    env |= {"SL_CERT": str(certs / "c0.pem"), "SL_KEY": str(certs / "c0.key")}
    with ExitStack() as stack:
        first = stack.enter_context(started("sl-client", "run", env=env))
        assert server.event("joined", client="c0")["shard"] == 1
        second = stack.enter_context(started("sl-client", "run", "--server", address, *secure(folder, "c1")))
        assert (first.end(), second.end(), server.end()) == (0, 0, 0), first.err + second.err + server.err
    simulation = Simulation(CONFIG)
    simulation.run()
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["finished"]
    assert summary["weights_sha256"] == simulation.coordinator.weights_sha256()
    left = [path.read_bytes() for path in (folder / "out").iterdir()]
    said = [text.encode() for process in (server, first, second) for text in (process.out, process.err)]
    for token in TOKENS.values():
        assert not [data for data in (*left, *said) if token.encode() in data]


def test_a_server_killed_under_mutual_tls_is_resumed_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """Clients that find its port closed, or open and closed again, wait for it as they do in plaintext."""
    certs, config = folder / "certs", slow_config("splitfed_v1")
    pair = "--cert", certs / "server.pem", "--key", certs / "server.key", "--client-ca", certs / "ca.pem"
    with ExitStack() as stack:
        tokens = "--tokens", folder / "tokens.toml"
        run = Federation(stack, config, tmp_path, (*pair, *tokens), lambda number: secure(folder, f"c{number}"))
        run.join()
        for rounds in (1, 3):
            run.wait_for(rounds)
            run.kill_server()
            run.resume()
        summary = run.summary()
    assert summary["finished"]
    assert summary["weights_sha256"] == sha_of(config)


def test_an_expired_server(folder: Path) -> None:
    ours = Authority(folder / "bad")
    cert, key = ours.server("expired", now=LONG_AGO)
    to = "--listen", "127.0.0.1:0", "--cert", cert, "--key", key, "--out", folder / "expired", "--json"
    with started("sl-server", "run", folder / "run.json", *to) as server:
        address = server.event("listening")["address"]
        client = ran("sl-client", "run", "--server", address, "--ca", ours.ca, "--retry", 600)
        assert (client.code, "expired on " in client.err) == (3, True), client.err
        assert server.event("warning")["text"].startswith(f"--cert {cert} expired on ")
        warned = [event["text"] for event in server.events if event["event"] == "warning"]
        assert warned[1].startswith("refused a client that broke the handshake off (tls): it may not trust --cert")


def test_a_servers_own_files(folder: Path, tmp_path: Path) -> None:
    certs = folder / "certs"
    run = "sl-server", "run", folder / "run.json", "--listen", "127.0.0.1:0", "--out", tmp_path / "out"
    pair = "--cert", certs / "server.pem", "--key"
    done = ran_all(
        {
            "no key": (*run, *pair, certs / "none.key"),
            "not its key": (*run, *pair, certs / "c0.key"),
            "tokens in plaintext": (
                *run[:-4],
                "--listen",
                "0.0.0.0:0",
                "--insecure",
                "--tokens",
                folder / "tokens.toml",
            ),
        }
    )
    assert {what: process.code for what, process in done.items()} == dict.fromkeys(done, 2)
    assert f"--key {certs}/none.key: No such file or directory" in done["no key"].err
    assert "does not belong to the certificate" in done["not its key"].err
    assert "--tokens on --listen 0.0.0.0:0 would be sent in plaintext" in done["tokens in plaintext"].err
    assert not (tmp_path / "out").exists()
