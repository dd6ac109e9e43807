"""What a server process says of itself over HTTP, and that nobody who asks can keep it from ending."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest
from asked import answering, trained_in
from asking import all_of, asked, connected, got, held
from live import ClientThread, serving
from processes import started
from raw_http2 import CALL, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame, headers
from test_predict import SMALL
from world import make_config

from sl_server.telemetry.health import Health, page

SCRAPES = "X-Prometheus-Scrape-Timeout-Seconds: 5"
OK, OVER = (200, b"ok\n"), (503, b"the run is over\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory."""
    out = tmp_path_factory.mktemp("health") / "run"
    trained_in(out, make_config("splitfed_v2", **SMALL))
    return out


def test_a_run_is_ready_until_it_is_over() -> None:
    with serving(make_config("parallel", run__clients=1, run__rounds=1)) as live:
        port = live.metrics.scrapes.serve("127.0.0.1", 0, live.engine.health)
        assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, OK]
        client = ClientThread(live.address)
        client.join(60)
        assert live.over.wait(30)
        assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, OVER]
        live.metrics.scrapes.close()


def test_a_run_that_is_to_stop_is_not_ready() -> None:
    for tell, why in (("drain", b"stopping, to be resumed\n"), ("stop", b"stopping: the run ends early\n")):
        with serving(make_config("parallel", run__clients=1)) as live:
            port = live.metrics.scrapes.serve("127.0.0.1", 0, live.engine.health)
            live.engine.drain() if tell == "drain" else live.engine.stop("by the test")
            assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, (503, why)]
            live.metrics.scrapes.close()


def test_what_answers_after_a_run_is_ready_until_it_stops(run: Path) -> None:
    with answering(run) as live:
        port = live.metrics.scrapes.serve("127.0.0.1", 0, live.inference.health)
        assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, OK]
        live.inference.drain()
        assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, (503, b"stopping\n")]
        live.metrics.scrapes.close()


def test_a_process_without_its_loop_is_dead() -> None:
    loop = threading.Thread(target=lambda: None, name="engine")
    health = Health(loop)
    assert (health.dead, health.away) == ("", "starting")
    loop.start()
    loop.join()
    assert health.dead == health.away == "the thread 'engine' has died"
    assert page(health.dead).status == 503
    health.ends()
    assert (health.dead, health.away) == ("", "ending")


@pytest.fixture(params=["run", "serve"])
def process(request: pytest.FixtureRequest, run: Path, tmp_path: Path):
    """Either server process, and the port of its pages."""
    command: tuple[object, ...] = ("serve", run)
    if request.param == "run":
        config = make_config("parallel", run__clients=1, run__rounds=1, model__args="{ hidden = [4] }")
        (tmp_path / "run.json").write_text(config.to_json())
        command = ("run", tmp_path / "run.json", "--out", tmp_path / "out")
    to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json"
    with started("sl-server", *command, *to) as server:
        yield server, server.event("metrics")["port"], server.event("listening")["address"]


def test_pages_are_the_same_ones_and_there_are_no_others(process) -> None:
    server, port, _ = process
    status, headers, body = asked(port, b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"\nsl_build_info{" in body
    assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, OK]
    for path in ("/", "/metrics/", "/metricsx", "/favicon.ico", "/healthz/live"):
        assert got(port, path)[0] == 404
    assert got(port, "/metrics", method="POST")[0] == got(port, "/readyz", method="PUT")[0] == 405
    server.signal(signal.SIGINT)
    assert server.end() in (0, 130, 1, 3)


def test_a_process_that_is_held_ends_all_the_same(process) -> None:
    """Half requests and slow readers, who come back whenever they are sent away; on the port for clients, those who say too little."""
    server, port, address = process
    with held(port), contextlib.ExitStack() as stack:
        for first in (
            b"",
            PREFACE[:9],
            PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, headers(CALL)),
        ):
            stack.enter_context(connected(int(address.rpartition(":")[2]))).sendall(first)
        assert got(port, "/healthz")[0] == 200
        ends(server, address)
        began = time.monotonic()
        assert server.end() == 0, server.err
        assert time.monotonic() - began < 40.0


def test_many_who_say_nothing_cost_no_thread_and_are_sent_away(process) -> None:
    server, port, _ = process
    threads = Path(f"/proc/{server._process.pid}/task")
    assert got(port, "/metrics")[0] == 200
    before = len(list(threads.iterdir()))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(port)) for _ in range(100)]
        assert got(port, "/metrics")[0] == 200
        assert len(list(threads.iterdir())) <= before + 2
        assert [all_of(peer) for peer in peers] == [b""] * 100  # within PATIENCE_S each


def ends(server, address: str) -> None:
    """Let its work come to its end: a run by training, else by a signal."""
    if "heads" not in server.event("listening"):
        client = ClientThread(address)
        client.join(60)
        assert client.bye is not None
    else:
        server.signal(signal.SIGTERM)
    server.event("summary")


def test_nobody_is_ready_while_a_run_waits_for_its_last_scrape(tmp_path: Path) -> None:
    """It lives, and takes no client; a scrape that is taken whole lets it end."""
    config = make_config("parallel", run__clients=1, run__rounds=1, model__args="{ hidden = [4] }")
    (tmp_path / "run.json").write_text(config.to_json())
    to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json", "--out", tmp_path / "out"
    with started("sl-server", "run", tmp_path / "run.json", *to) as server:
        port = server.event("metrics")["port"]
        assert got(port, "/metrics", SCRAPES)[0] == 200
        time.sleep(10.0)
        assert got(port, "/metrics", SCRAPES)[0] == 200  # due again within 15.5 s
        client = ClientThread(server.event("listening")["address"])
        client.join(60)
        server.event("summary")
        assert [got(port, path) for path in ("/healthz", "/readyz")] == [OK, OVER]
        assert got(port, "/metrics", method="HEAD")[0] == 200
        assert server.is_running()
        status, body = got(port, "/metrics", SCRAPES)
        assert status == 200
        assert b"\nsl_run_over 1.0\n" in body
        began = time.monotonic()
        assert server.end() == 0, server.err
        assert time.monotonic() - began < 20.0
