"""`sl-server report`: what the page says is what the run directory says, and it needs nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.host.progress import size
from sl_common.messages.facts import ClientAway, ClientBack, ClientDone, ClientJoined, ClientLeft, RoundEnded, WaveBegun
from sl_common.wire.accounting import WIRE_KINDS
from sl_server.console.show import ServerConsole
from sl_server.report.page import make_page
from sl_server.report.past import read_past_run
from sl_server.report.timeline import TimelineSpan, timeline
from sl_server.simulation.simulation import Simulation
from sl_server.storage.run_directory import RunDirectory
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import PHASES
from sl_server.training.recorder import RunRecorder

ROUNDS = 3
NEEDS_NO_END = {"meta", "br", "link", "img", "input", "hr"}


def write_run(out: Path, config: RunConfig) -> Path:
    """A whole run in this process, into a run directory."""
    ledger = Ledger()
    simulation = Simulation(config, count=ledger.count)
    directory = RunDirectory(out, config, ledger)
    scribe = RunRecorder(simulation.coordinator, directory, ServerConsole(ledger, config.run.rounds, as_json=True))
    for fact in simulation.facts():
        if isinstance(fact, RoundEnded):  # a simulation has no step phases: as the engine's meter would count them
            for number, phase in enumerate(PHASES):
                ledger.timed(phase, 0.001 * (number + 1) * (fact.round + 1))
        scribe.fact(fact)
    scribe.finish()
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shared and private lower segments, and a codec."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"run__rounds": ROUNDS, "run__clients": 2, "client__wave": "{ steps = 2 }", "eval__every": 1}
    shared = make_config("splitfed_v2", run__name='"first <run>"', **few)
    private = make_config("sglr", run__name='"second"', codec__up='{ kind = "float8" }', **few)
    return [write_run(folder / "a", shared), write_run(folder / "b", private)]


class Page(HTMLParser):
    """Tags that match, what they refer to, and the text of each element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.cells: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names.add(tag)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found[name] for name in ("src", "href", "xlink:href", "action", "data") if found.get(name)]
        if tag not in NEEDS_NO_END:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in NEEDS_NO_END:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def both(runs: list[Path]) -> str:
    return make_page(runs)


def lines(path: Path, event: str) -> list[dict]:
    found = (json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["event"] == event]


def svgs(html: str) -> dict[str, ElementTree.Element]:
    """The plots by name; each is well-formed XML."""
    found = re.findall(
        r'<figure id="([^"]+)"[^>]*>(?:<h3>[^\n]*?</h3>)?<div>(<svg.*?</svg>)</div>', html, flags=re.DOTALL
    )
    return {name: ElementTree.fromstring(svg) for name, svg in found}


def test_the_page_is_whole_and_asks_nobody_for_anything(both: str) -> None:
    page = Page(both)
    assert len(page.ids) == len(set(page.ids)), "no two elements have one id"
    assert {link for link in page.links if not link.startswith("#")} == set()
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not page.names & {"script", "link", "iframe", "object", "embed", "img"}
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", both)


def test_a_name_cannot_be_markup(both: str) -> None:
    assert "first &lt;run&gt;" in both
    assert "<run>" not in both


def test_every_plot_is_there(both: str, runs: list[Path]) -> None:
    found = svgs(both)
    lines_ = {f"{what}-{against}" for what in ("accuracy", "loss") for against in ("rounds", "bytes", "time")}
    assert found.keys() == lines_ | {"traffic", "step", "phases-0", "phases-1", "clients-0", "clients-1"}
    alone = svgs(make_page(runs[:1]))
    assert alone.keys() == found.keys() - {"phases-1", "clients-1"}


def test_axes_say_what_they_are_and_lines_whose_they_are(both: str) -> None:
    texts = {name: [e.text for e in svg.iter("text")] for name, svg in svgs(both).items()}
    assert "round" in texts["loss-rounds"]
    assert "bytes on the wire, without evaluation" in texts["loss-bytes"]
    assert "time since the first wave [s]" in texts["accuracy-time"]
    for name in ("accuracy-rounds", "accuracy-bytes", "loss-time"):
        assert {"A", "B"} <= set(texts[name])
    assert {"c0", "c1", "trains", "evaluates"} <= {str(text) for text in texts["clients-0"]}


def test_runs_have_a_colour_each_which_is_the_pages(both: str) -> None:
    for name in ("accuracy-rounds", "loss-bytes"):
        text = ElementTree.tostring(svgs(both)[name], "unicode")
        assert {"var(--run0)", "var(--run1)"} <= set(re.findall(r"var\(--run\d\)", text))
    assert not re.search(r"(?:fill|stroke): #(?!000000)", both), "a colour of its own would not change with the theme"


def test_numbers_are_those_of_the_run_directory(both: str, runs: list[Path]) -> None:
    cells = Page(both).cells
    for path in runs:
        summary = json.loads((path / "summary.json").read_text())
        evaluation = summary["evaluation"]
        accuracy = f"{evaluation['accuracy']:.2%}"
        assert any(cell.startswith(accuracy) for cell in cells)
        assert summary["weights_sha256"] in cells
        assert f"{evaluation['loss']:.4f}" in cells
        assert f"{summary['train_loss']:.4f}" in cells
        for direction in ("up", "down"):
            assert any(cell.startswith(size(sum(summary["bytes"][direction].values()))) for cell in cells)
        assert any(cell.startswith(f"{summary['seconds']:.1f} s") for cell in cells)
        for line in lines(path, "round"):
            total = sum(n for kinds in line["bytes"].values() for kind, n in kinds.items() if kind != "eval")
            assert {f"{total:,}", f"{line['loss']:.4f}", f"{line['seconds']:.3f}"} <= set(cells)


def test_lines_go_through_the_runs_points(both: str, runs: list[Path]) -> None:
    """The drawn points are the recorded ones, scaled: their distances on the page are in the same ratio."""
    losses = [line["loss"] for line in lines(runs[0], "round")]
    path = next(e for e in svgs(both)["loss-rounds"].iter("path") if "var(--run0)" in e.get("style", ""))
    points = [tuple(map(float, xy)) for xy in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))]
    assert len(points) == ROUNDS
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, rel=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx((losses[1] - losses[0]) / (losses[2] - losses[0]), rel=1e-3)


def test_what_differs_is_listed(both: str, runs: list[Path]) -> None:
    cells = Page(both).cells
    assert "codec.up.kind" in cells
    assert "run.seed" not in cells
    assert "Every key that differs" not in make_page(runs[:1])


def test_bytes_are_set_against_the_first_run(both: str, runs: list[Path]) -> None:
    up = [sum(json.loads((path / "summary.json").read_text())["bytes"]["up"].values()) for path in runs]
    assert f"{size(up[1])} ({up[1] / up[0]:.2f}×)" in Page(both).cells


# --- what is not whole


def cut(runs: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "cut"))


def test_a_run_that_is_not_over_says_so(runs: list[Path], tmp_path: Path) -> None:
    path = cut(runs, tmp_path)
    (path / "summary.json").unlink()
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[: text.index('"round": 3, "loss"') + 5])
    page = make_page([path])
    assert "summary.json is not there yet" in page
    assert "ends within a line, which is left out" in page
    assert f"not over: 2 of {ROUNDS} rounds" in page
    assert svgs(page).keys() >= {"accuracy-rounds", "loss-bytes", "traffic"}
    last = lines_so_far(path)
    assert size(sum(last["bytes"]["up"].values())) in Page(page).cells


def lines_so_far(path: Path) -> dict:
    """The last whole line with bytes."""
    whole = (path / "metrics.jsonl").read_text().splitlines()[:-1]
    return next(line for line in map(json.loads, reversed(whole)) if "bytes" in line)


def test_a_run_that_has_not_begun_is_a_page_that_says_what_is_missing(runs: list[Path], tmp_path: Path) -> None:
    path = cut(runs, tmp_path)
    for name in ("summary.json", "metrics.jsonl"):
        (path / name).unlink()
    page = make_page([path])
    Page(page)
    assert "metrics.jsonl is missing" in page
    assert "no round is over yet" in page
    assert svgs(page) == {}


def test_nan_is_a_gap(runs: list[Path], tmp_path: Path) -> None:
    path = cut(runs, tmp_path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] in ("round", "evaluation") and row["round"] == ROUNDS:
            row["loss"] = float("nan")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Page(make_page([path]))


BAD = {
    "absent": (None, "", "not a run directory"),
    "foreign config": ("config.json", '{"name": "somebody else\'s"}', "config.json"),
    "no JSON": ("config.json", "\x00", "config.json"),
    "foreign metrics": ("metrics.jsonl", "step,loss\n1,2\n", "metrics.jsonl, line 1: not an event"),
    "odd line": ("metrics.jsonl", '{"event": "round"}\n', "metrics.jsonl, line 1: Field required"),
    "a round beyond counting": (
        "metrics.jsonl",
        f'{{"event": "round", "round": {10**400}, "loss": 1, "samples": 1, "clients": 1, "bytes": {{}}}}\n',
        "metrics.jsonl, line 1: Input should be less than",
    ),
    "bytes beyond counting": (
        "summary.json",
        f'{{"seconds": 1, "bytes": {{"up": {{"eval": {10**400}}}}}, "payload_bytes": {{}}, "weights_sha256": "", "reason": "", "finished": true}}',
        "summary.json: bytes.up.eval: Input should be less than",
    ),
    "foreign summary": ("summary.json", "[1]", "summary.json"),
    "binary summary": ("summary.json", "{", "summary.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_directory_that_is_none_of_ours_is_refused(name: str, runs: list[Path], tmp_path: Path) -> None:
    file, text, told = BAD[name]
    path = cut(runs, tmp_path) if file else tmp_path / "nothing"
    if file:
        (path / file).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        make_page([runs[1], path])
    assert str(path) in str(error.value), "which of them"


# --- what is recorded for it


def test_the_table_has_what_the_lines_have(runs: list[Path]) -> None:
    for path in runs:
        rows = list(csv.DictReader((path / "metrics.csv").read_text().splitlines()))
        assert [row["round"] for row in rows] == ["1", "2", "3"]
        for row, line, score in zip(rows, lines(path, "round"), lines(path, "evaluation"), strict=True):
            assert float(row["loss"]) == line["loss"]
            assert float(row["accuracy"]) == score["accuracy"]
            assert float(row["seconds"]) == score["seconds"]
            for direction in ("up", "down"):
                counts = {kind: int(row[f"{direction}_{kind}_bytes"]) for kind in WIRE_KINDS}
                assert {kind: n for kind, n in counts.items() if n} == score["bytes"][direction]
                assert int(row[f"{direction}_payload_bytes"]) == sum(score["payload_bytes"][direction].values())
            assert {phase: float(row[f"{phase}_seconds"]) for phase in PHASES} == line["phases"]
        summary = json.loads((path / "summary.json").read_text())
        assert int(rows[-1]["up_smashed_bytes"]) == summary["bytes"]["up"]["smashed"]


def test_a_table_is_cut_back_with_the_rest(tmp_path: Path) -> None:
    """A checkpoint never parts a row: after going back, the next round follows the last that is there."""
    config = make_config("parallel")
    directory = RunDirectory(tmp_path, config, Ledger())
    begun = WaveBegun(round=1, rounds=3, wave=0, clients=("c0",), steps=1, evaluate=False)
    for number in range(2):
        directory.fact(RoundEnded(round=number, loss=1.0, samples=1, clients=1), 1.0)
        directory.fact(begun, 1.0)
    kept = directory.written()
    directory.fact(RoundEnded(round=2, loss=1.0, samples=1, clients=1), 2.0)
    directory.fact(begun, 2.0)
    directory.fact(RoundEnded(round=3, loss=1.0, samples=1, clients=1), 2.0)
    directory.cut_back(kept)
    directory.close()
    again = RunDirectory(tmp_path, config, Ledger(), kept)
    again.fact(RoundEnded(round=2, loss=2.0, samples=1, clients=1), 3.0)
    again.fact(begun, 3.0)
    again.close()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["round"], row["loss"]) for row in rows] == [("1", "1.0"), ("2", "1.0"), ("3", "2.0")]


def test_a_clients_course(tmp_path: Path) -> None:
    """Trained, broke off and came back; lost in the next wave; a new life; and one that the server played back."""
    directory = RunDirectory(tmp_path, make_config("parallel"), Ledger())
    begun = WaveBegun(round=0, rounds=9, wave=0, clients=("c0", "c1"), steps=2, evaluate=False)
    done = {"round": 0, "wave": 0, "steps": 1, "samples": 1, "evaluate": False}
    for fact, now in (
        (ClientJoined(client="c0", shard=0), 0.0),
        (ClientJoined(client="c1", shard=1), 0.0),
        (begun, 0.0),
        (ClientAway(client="c1"), 1.0),
        (ClientBack(client="c1"), 2.0),
        (ClientDone(client="c0", **done), 3.0),
        (ClientDone(client="c1", **done), 4.0),
        (RoundEnded(round=0, loss=1.0, samples=2, clients=2), 4.0),
        (begun, 4.0),
        (ClientLeft(client="c1", shard=1, reason="gone", was_ready=True), 6.0),
        (ClientJoined(client="c1", shard=1), 7.0),
        (RoundEnded(round=1, loss=1.0, samples=2, clients=2), 8.0),
    ):
        directory.fact(fact, now)
    directory.close()
    first, second = timeline(read_past_run(tmp_path).lines).rows
    assert first.spans == [TimelineSpan(doing="train", start=0, end=3), TimelineSpan(doing="here", start=0, end=8)]
    assert second.spans == [
        TimelineSpan(doing="away", start=1, end=2),
        TimelineSpan(doing="train", start=0, end=4),
        TimelineSpan(doing="lost", start=4, end=6),
        TimelineSpan(doing="here", start=0, end=6),
        TimelineSpan(doing="here", start=7, end=8),
    ]
    assert (second.joined, second.left) == ([0, 7], [6])
    assert {"left", "back again", "wave not finished", "stream broken"} <= {
        str(e.text) for e in svgs(make_page([tmp_path]))["clients-0"].iter("text")
    }
