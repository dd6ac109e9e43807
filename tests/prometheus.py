"""A real Prometheus with this repository's own configuration, and every query that its rules, console and dashboards hold."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html import unescape
from pathlib import Path

import pytest
from processes import ROOT, Process, started

OURS = ROOT / "docker" / "prometheus"
CONSOLE = OURS / "consoles" / "cutlayer.html"
DASHBOARDS = sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
ATTEMPTS = 3
COMPARISON = re.compile(r"\s(>=|<=|==|!=|>|<) (?!bool )")
SET_OPERATOR = re.compile(r"\n(?:and|or|unless)(?: (?:on|ignoring) \([^)]*\))? ")


def needed(program: str) -> str:
    """Its path. Without Debian's package the test is skipped, where nothing may be skipped it fails."""
    found = shutil.which(program)
    if found is None:
        text = f"{program} is missing: apt-get install prometheus"
        if os.environ.get("NOTHING_SKIPPED"):
            pytest.fail(text)
        pytest.skip(text)
    return found


class Prometheus:
    """One that runs, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **fields: object) -> bytes:
        query = f"?{urllib.parse.urlencode(fields)}" if fields else ""
        with urllib.request.urlopen(f"{self.url}/{path}{query}", timeout=20) as answer:
            return answer.read()

    def is_up(self, process: Process) -> bool:
        """Wait until it answers; false if it has ended: it takes no port 0, and another process may have taken the one that was free."""
        while process.is_running():
            with contextlib.suppress(OSError):
                self.get("-/ready")
                return True
            time.sleep(0.05)
        return False

    def query(self, text: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample; a query that Prometheus does not understand is an AssertionError."""
        try:
            found = json.loads(self.get("api/v1/query", query=text))["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{text}\n{error.read().decode()}") from error
        return [(sample["metric"], float(sample["value"][1])) for sample in found]

    def has_data(self, text: str) -> bool:
        """Whether there is a number; what only a filter leaves out is there too."""
        for asked in (text, COMPARISON.sub(r" \1 bool ", text)):
            if any(not math.isnan(value) for _, value in self.query(asked)):
                return True
        return False


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with our files; only the target and the intervals are the test's."""
    program = needed("prometheus")
    text = (OURS / "prometheus.yml").read_text()
    assert text.count('"server:9464"') == 1
    assert text.count("_interval: 5s") == 2
    config = folder / "prometheus.yml"
    config.write_text(text.replace("server:9464", target).replace("_interval: 5s", "_interval: 1s"))
    shutil.copy(OURS / "rules.yml", folder)
    flags = {
        "config.file": config,
        "web.console.templates": CONSOLE.parent,
        "web.console.libraries": CONSOLE.parent,
        "log.level": "warn",
    }
    with ExitStack() as stack:
        for attempt in range(ATTEMPTS):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            flags |= {"storage.tsdb.path": folder / f"tsdb{attempt}", "web.listen-address": f"127.0.0.1:{port}"}
            process = stack.enter_context(started(program, *(f"--{name}={value}" for name, value in flags.items())))
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            if prometheus.is_up(process):
                yield prometheus
                return
        pytest.fail(process.err)


def rules(kind: str) -> dict[str, str]:
    """Name -> expression of the "record" or "alert" rules. Ours are written so that no YAML parser is needed."""
    found = {}
    for block in re.split(r"\n      - (?=record:|alert:)", (OURS / "rules.yml").read_text())[1:]:
        name = re.match(r"(record|alert): (\S+)", block)
        one_line = re.search(r"\n        expr: (?!\|-)(.*)", block)
        lines = re.search(r"\n        expr: \|-\n((?: {10}.*\n)+)", block + "\n")
        assert name is not None
        if name[1] == kind:
            text = one_line[1] if one_line else re.sub(r"^ {10}", "", lines[1], flags=re.MULTILINE)  # type: ignore[index]
            found[name[2]] = text.strip()
    return found


def operands(alert: str) -> list[str]:
    """What an alert's expression joins with and, or, unless: each is to have data when the alert does not fire."""
    return SET_OPERATOR.split(alert)


def console_queries(values: dict[str, str]) -> set[str]:
    """Of the console page, with its variables replaced by `values`."""
    found = set()
    for text, names in re.findall(r'printf "((?:[^"\\]|\\.)*)"((?: \$\w+)*)', CONSOLE.read_text()):
        if text.startswith("%"):
            continue  # how a number is written
        for name in names.split():
            text = text.replace("%q", json.dumps(values[name]), 1)
        assert "%q" not in text, text
        found.add(unescape(text))
    return found


def panels(board: Path) -> list[dict]:
    """Of a dashboard, without the rows."""
    return [panel for panel in json.loads(board.read_text())["panels"] if panel["type"] != "row"]


def dashboard_queries(board: Path, instance: str) -> set[str]:
    """Of all panels and annotations, with Grafana's variables replaced."""
    texts = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    texts += [one["expr"] for one in json.loads(board.read_text())["annotations"]["list"]]
    return {text.replace("$__rate_interval", "1m").replace("$instance", instance) for text in texts}
