"""A run as text: its settings, its results, differences between runs. Every number is from the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sl_common.codec.words import words
from sl_common.host.progress import size
from sl_server.report.past import PastRun

NO_VALUE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRow:
    """One line of a table: a name, and a cell for each run."""

    name: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """True if the runs' cells are not all equal."""
        return len(set(self.cells)) > 1


def title_of(run: PastRun) -> str:
    """Return a run's title for people."""
    return run.config.run.name


def state_of(run: PastRun) -> str:
    """Return "finished", or why the run is not."""
    if run.summary is None:
        return f"not over: {len(run.rounds)} of {run.config.run.rounds} rounds"
    return "finished" if run.summary["finished"] else f"ended early: {run.summary['reason']}"


def result_rows(runs: Sequence[PastRun]) -> list[ReportRow]:
    """Return the results; bytes and seconds of later runs are followed by their ratio to the first run's."""
    return [
        _row("state", runs, state_of),
        _row("accuracy", runs, _accuracy),
        _row("loss, held out", runs, lambda run: f"{run.evaluations[-1].loss:.4f}" if run.evaluations else NO_VALUE),
        _row("loss, last round", runs, _loss),
        _compared("bytes up", runs, lambda run: sum(run.bytes().get("up", {}).values()), size),
        _compared("bytes down", runs, lambda run: sum(run.bytes().get("down", {}).values()), size),
        _row("float32 ÷ wire", runs, _saved),
        _compared("bytes without evaluation", runs, _trained, size),
        _compared("time", runs, lambda run: run.seconds, lambda s: f"{s:.1f} s"),
        _compared("mean time of a step", runs, lambda run: 1000 * sum(run.phases.values()), lambda ms: f"{ms:.1f} ms"),
        _row("weights sha256", runs, lambda run: run.summary["weights_sha256"] if run.summary else NO_VALUE),
    ]


def settings(runs: Sequence[PastRun]) -> list[ReportRow]:
    """Return the settings that people compare most."""
    asked: list[tuple[str, Callable[[PastRun], str]]] = [
        ("protocol", lambda run: run.config.preset or "own"),
        ("model, cut", lambda run: f"{run.config.model.name}, {run.config.model.cut}"),
        (
            "data",
            lambda run: (
                f"{run.config.data.name}, {run.config.data.partition.kind}, batches of {run.config.data.batch_size}"
            ),
        ),
        ("clients, rounds", lambda run: f"{run.config.run.clients}, {run.config.run.rounds}"),
        ("codec up", lambda run: words(run.config.codec.up)),
        ("codec down", lambda run: words(run.config.codec.down)),
        ("codec of weights", lambda run: words(run.config.codec.state)),
        ("client's optimiser", lambda run: _optimizer(run.config.client.optimizer)),
        ("server's optimiser", lambda run: _optimizer(run.config.server.optimizer)),
        ("seed, threads", lambda run: f"{run.config.run.seed}, {run.config.run.threads}"),
        ("device of the head", lambda run: str((run.summary or {}).get("device") or NO_VALUE)),
        (
            "torch, cutlayer",
            lambda run: f"{run.summary.get('torch')}, {run.summary.get('cutlayer')}" if run.summary else NO_VALUE,
        ),
        ("directory", lambda run: str(run.path)),
    ]
    return [_row(name, runs, cell) for name, cell in asked]


def differences(runs: Sequence[PastRun]) -> list[ReportRow]:
    """Return every configuration key in which the runs differ."""
    flat = [dict(_leaves(run.config.model_dump(mode="json"))) for run in runs]
    keys = sorted(set().union(*flat) - {"run.name", "preset"})
    rows = [ReportRow(name=key, cells=tuple(str(one.get(key, NO_VALUE)) for one in flat)) for key in keys]
    return [row for row in rows if row.differs]


def rounds(run: PastRun) -> tuple[list[str], list[list[str]]]:
    """Return the plotted numbers as a table: its head, and one row a round."""
    head = [
        "round",
        "loss",
        "accuracy",
        "loss, held out",
        "bytes so far, without evaluation",
        "seconds",
        "samples",
        "clients",
    ]
    scores = {e.round: e for e in run.evaluations}
    body = [
        [
            str(r.round),
            NO_VALUE if r.loss is None else f"{r.loss:.4f}",
            f"{scores[r.round].accuracy:.2%}" if r.round in scores else NO_VALUE,
            f"{scores[r.round].loss:.4f}" if r.round in scores else NO_VALUE,
            f"{run.bytes_at(r):,}",
            f"{r.seconds:.3f}",
            f"{r.samples:,}",
            str(r.clients),
        ]
        for r in run.rounds
    ]
    return head, body


def _row(name: str, runs: Sequence[PastRun], cell: Callable[[PastRun], str]) -> ReportRow:
    return ReportRow(name=name, cells=tuple(cell(run) for run in runs))


def _compared(
    name: str, runs: Sequence[PastRun], of: Callable[[PastRun], float], text: Callable[[float], str]
) -> ReportRow:
    values = [of(run) for run in runs]
    first = values[0]
    others = (f"{text(v)} ({v / first:.2f}×)" if v and first else text(v) if v else NO_VALUE for v in values[1:])
    return ReportRow(name=name, cells=(text(first) if first else NO_VALUE, *others))


def _accuracy(run: PastRun) -> str:
    if not run.evaluations:
        return NO_VALUE
    last = run.evaluations[-1]
    spread = "" if last.shared else f" ({last.min:.2%} to {last.max:.2%} over clients)"
    return f"{last.accuracy:.2%}{spread}"


def _loss(run: PastRun) -> str:
    known = [r.loss for r in run.rounds if r.loss is not None]
    return f"{known[-1]:.4f}" if known else NO_VALUE


def _trained(run: PastRun) -> int:
    return sum(n for kinds in run.bytes().values() for kind, n in kinds.items() if kind != "eval")


def _saved(run: PastRun) -> str:
    wire, payload = (sum(sum(kinds.values()) for kinds in run.bytes(w).values()) for w in ("bytes", "payload_bytes"))
    return f"{payload / wire:.2f}×" if wire and payload else NO_VALUE


def _optimizer(optimizer: Any) -> str:
    given = optimizer.model_dump(mode="json")
    kind = given.pop("kind")
    return " ".join([kind, *(f"{key}={value}" for key, value in given.items() if key in ("lr", "momentum"))])


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
