"""A real Prometheus scrapes a real run: every query of rules, console and dashboards has data, and no byte is lost at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from processes import Process, started
from prometheus import (
    CONSOLE,
    DASHBOARDS,
    OURS,
    Prometheus,
    console_queries,
    dashboard_queries,
    needed,
    operands,
    panels,
    rules,
    scraping,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import ClientLeft, Trained
from sl_server.telemetry.client_series import OTHERS
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics

RUN = """
[run]
name = "watched"
rounds = 100000
clients = 2
checkpoints = "round"
[model]
name = "mlp"
args = { hidden = [16] }
[data]
batch_size = 32
[protocol]
preset = "splitfed_v1"
[codec]
up = { kind = "float8" }
[client]
wave = { steps = 8 }
[metrics]
budget_mb = 0.001
"""
CLIENTS = ("north", 'so"uth')  # names are quoted wherever they stand in a query
PATIENCE_S = 40.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run under way, and who scrapes it."""

    prometheus: Prometheus
    server: Process
    instance: str
    out: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    needed("prometheus")
    (folder / "run.toml").write_text(RUN)
    with ExitStack() as stack:
        to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--out", folder / "out", "--json"
        server = stack.enter_context(started("sl-server", "run", folder / "run.toml", *to))
        address = server.event("listening")["address"]
        for name in CLIENTS:
            stack.enter_context(started("sl-client", "run", "--server", address, "--id", name))
        instance = f"127.0.0.1:{server.event('metrics')['port']}"
        prometheus = stack.enter_context(scraping(folder, instance))
        yield Watched(prometheus=prometheus, server=server, instance=instance, out=folder / "out")


def until(ask: Callable[[], T], good: Callable[[T], object]) -> T:
    """The first good answer: a scrape may be missed where a machine is busy."""
    deadline = time.monotonic() + PATIENCE_S
    while not good(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer


def all_queries(instance: str) -> set[str]:
    values = {"$i": instance, "$c": CLIENTS[1], "$phase": "wire", "$way": "up", "$kind": "smashed"}
    asked = console_queries(values) | set(rules("record")) | set(rules("record").values())
    asked |= {part for alert in rules("alert").values() for part in operands(alert)}
    for board in DASHBOARDS:
        asked |= dashboard_queries(board, instance)
    return asked


def test_every_query_has_data(watched: Watched) -> None:
    """Of each console, panel, recording and alert rule; comparisons, which only filter, left out where nothing passes them."""
    missing = all_queries(watched.instance)
    assert len(missing) > 120
    deadline = time.monotonic() + PATIENCE_S
    while missing and time.monotonic() < deadline:
        missing = {query for query in missing if not watched.prometheus.has_data(query)}
        time.sleep(0.2)
    assert not missing, "\n".join(sorted(missing))


def test_prometheus_took_every_rule(watched: Watched) -> None:
    groups = json.loads(watched.prometheus.get("api/v1/rules"))["data"]["groups"]
    found = {
        (rule["type"], rule["name"]): (rule["health"], rule.get("lastError")) for g in groups for rule in g["rules"]
    }
    expected = {("recording", name) for name in rules("record")} | {("alerting", name) for name in rules("alert")}
    assert found.keys() == expected
    assert set(found.values()) == {("ok", None)}
    firing = until(
        lambda: {labels["alertname"] for labels, _ in watched.prometheus.query('ALERTS{alertstate="firing"}')}, bool
    )
    assert firing == {"CutlayerBytesAboveBudget"}


def test_the_console_page_shows_the_run(watched: Watched) -> None:
    told = ("<h1>watched</h1>", "north", "so&#34;uth", "CutlayerBytesAboveBudget", "client_backward", "smashed")
    page = until(
        lambda: watched.prometheus.get("consoles/cutlayer.html").decode(), lambda page: all(t in page for t in told)
    )
    assert "float8 up, identity down" in page
    assert "error executing" not in page
    assert page.rstrip().endswith("</html>")
    nobody = watched.prometheus.get("consoles/cutlayer.html", instance="elsewhere:1").decode()
    assert "no server answers" in nobody


def test_promtools_linter_has_nothing_to_say(watched: Watched) -> None:
    with urllib.request.urlopen(f"http://{watched.instance}/metrics", timeout=10) as answer:
        text = answer.read()
    done = subprocess.run([needed("promtool"), "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_last_scrape_holds_every_byte_of_the_summary(watched: Watched) -> None:
    """The last test of this run, which ends with it: the server waits until Prometheus has come once more."""
    watched.server.signal(signal.SIGINT)
    assert watched.server.end() == 130, watched.server.err
    summary = json.loads((watched.out / "summary.json").read_text())
    query = watched.prometheus.query
    for name, counted in (("wire", summary["bytes"]), ("payload", summary["payload_bytes"])):
        kinds = query(f"last_over_time(sl_{name}_bytes_total[5m])")
        found = {(labels["direction"], labels["kind"]): value for labels, value in kinds}
        expected = {(way, kind): n for way, kinds in counted.items() for kind, n in kinds.items()}
        assert {key: n for key, n in found.items() if n} == {key: n for key, n in expected.items() if n}
        by_client = query(f"sum by (direction) (last_over_time(sl_client_{name}_bytes_total[5m]))")
        assert {labels["direction"]: value for labels, value in by_client} == {
            way: sum(kinds.values()) for way, kinds in counted.items()
        }
    trained = len((watched.out / "digests.log").read_text().splitlines())
    assert query("last_over_time(sl_steps_total[5m])")[0][1] == trained
    assert query("sum(last_over_time(sl_client_steps_total[5m]))")[0][1] == trained
    assert query("last_over_time(sl_run_over[5m])")[0][1] == 1


# --- the files themselves


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([needed("promtool"), *arguments], cwd=OURS, capture_output=True, text=True)
    assert (done.returncode, "FAILED" in done.stdout + done.stderr) == (0, False), done.stdout + done.stderr


def test_every_rule_has_a_unit_test() -> None:
    text = (OURS / "rules_test.yml").read_text()
    assert {name for name in (*rules("record"), *rules("alert")) if name not in text} == set()


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboards_structure(board: Path) -> None:
    text = json.loads(board.read_text())
    source = (OURS.parent / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert f"uid: {text['panels'][1]['datasource']['uid']} " in source
    ids = [panel["id"] for panel in text["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in text["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        cells |= taken
    for panel in panels(board):
        assert panel["title"], panel
        assert len(panel["description"]) > 8, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == text["panels"][1]["datasource"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]


def test_the_console_needs_nothing_from_elsewhere() -> None:
    text = CONSOLE.read_text()
    assert "src=" not in text
    assert "https://" not in text
    assert text.count("http://") == text.count("http://www.w3.org/2000/svg")


# --- so many clients have series of their own, and no more


def parsed(metrics: Metrics) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(metrics.text().decode()) for sample in family.samples]


def samples(metrics: Metrics, name: str) -> dict[str, float]:
    """Value by client."""
    return {sample.labels["client"]: sample.value for sample in parsed(metrics) if sample.name == name}


def came(metrics: Metrics, name: str, steps: int = 1) -> None:
    metrics.connected(name, 1)
    for step in range(steps):
        metrics.fact(Trained(client=name, shard=0, round=0, wave=0, step=step, samples=2, loss=1.0, crc32=""))
    metrics.clients.row(name).wire["up"] += 10 * steps


def went(metrics: Metrics, name: str) -> None:
    metrics.connected(name, -1)
    metrics.fact(ClientLeft(client=name, shard=0, reason="", was_ready=False))


def with_room_for(clients: int) -> Metrics:
    return Metrics(Ledger(), RunConfig.from_toml(f"metrics.clients = {clients}"))


def test_a_thousand_clients_have_no_more_series_than_the_configured_number() -> None:
    metrics = with_room_for(3)
    for number in range(4):
        came(metrics, f"c{number}")
    before = len(parsed(metrics))
    for number in range(4, 1000):
        came(metrics, f"c{number}")
    assert len(parsed(metrics)) == before
    assert samples(metrics, "sl_client_steps_total") == {"c0": 1, "c1": 1, "c2": 1, OTHERS: 997}
    assert samples(metrics, "sl_client_connected") == {"c0": 1, "c1": 1, "c2": 1, OTHERS: 997}


def test_a_crowd_that_comes_and_goes_takes_the_rows_of_those_who_left() -> None:
    """And no count is lost: the sum over all rows is the run's."""
    metrics = with_room_for(2)
    came(metrics, "stays", 5)
    for number in range(1, 50):
        came(metrics, f"d{number}", number)
        assert samples(metrics, "sl_client_steps_total")[f"d{number}"] == number
        went(metrics, f"d{number}")
        steps = samples(metrics, "sl_client_steps_total")
        assert len(steps) <= 3
        assert sum(steps.values()) == metrics.registry.get_sample_value("sl_steps_total")
        assert sum(samples(metrics, "sl_client_left_total").values()) == number
        assert sum(samples(metrics, "sl_client_connected").values()) == 1
    up = [row.wire["up"] for row in map(metrics.clients.row, ("stays", "d49", "d1"))]
    assert up == [50, 490, 10 * sum(range(1, 49))]


@pytest.mark.parametrize("name", ['so"uth', "back\\slash", "\\n", "ünder", "{a=b}"])
def test_any_name_comes_out_as_it_is(name: str) -> None:
    metrics = with_room_for(1)
    came(metrics, name)
    assert samples(metrics, "sl_client_connected") == {name: 1}


def test_without_room_all_clients_share_one_row() -> None:
    metrics = with_room_for(0)
    came(metrics, "a", 2)
    came(metrics, "b", 3)
    went(metrics, "a")
    assert samples(metrics, "sl_client_steps_total") == {OTHERS: 5}
    assert samples(metrics, "sl_client_connected") == {OTHERS: 1}
    assert samples(metrics, "sl_client_accuracy") == {}
