"""`sl-server report`: one HTML file that contains everything it shows and loads nothing.

Needs matplotlib and jinja2 (the extra `report`), which nothing else needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sl_common import __version__
from sl_common.wire.accounting import WIRE_KINDS
from sl_server.report import gantt, plots, svg, words
from sl_server.report.past import read_past_run
from sl_server.report.plots import Plot, ShownRun
from sl_server.report.timeline import timeline
from sl_server.telemetry.names import PHASES

_PHASES = {
    "client_forward": "forward on the client",
    "encode": "encode, both sides",
    "wire": "network",
    "queue_wait": "wait on the server",
    "server_compute": "head on the server",
    "decode": "decode, both sides",
    "client_backward": "backward on the client",
}
_KINDS = {"smashed": "activations", "gradient": "cut gradients", "eval": "evaluation"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Plots under a heading; `key` names the colours of their parts, `without` is shown if there is no plot."""

    title: str
    text: str
    plots: tuple[Plot, ...]
    without: str
    key: tuple[str, ...] = ()
    half: bool = False


def make_page(paths: Sequence[Path]) -> str:
    """Return the HTML of these run directories, in this order. Raises ConfigError if one is not a run directory."""
    runs = [read_past_run(path) for path in paths]
    letters = [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(runs))]
    shown = [
        ShownRun(run=run, letter=letter if len(runs) > 1 else "", number=n)
        for n, (run, letter) in enumerate(zip(runs, letters, strict=True))
    ]
    page = Environment(
        loader=PackageLoader("sl_server.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    return page.render(
        shown=shown,
        title=" · ".join(words.title_of(run) for run in runs),
        results=words.result_rows(runs),
        settings=words.settings(runs),
        differences=words.differences(runs) if len(runs) > 1 else [],
        sections=_sections(shown),
        title_of=words.title_of,
        state_of=words.state_of,
        rounds=words.rounds,
        resolved=lambda run: run.config.model_dump_json(indent=2),
        version=__version__,
        colors=len(svg.RUN_COLORS),
    )


def _sections(shown: Sequence[ShownRun]) -> list[Section]:
    return [*_learning_sections(shown), *_cost_sections(shown), _clients_section(shown)]


def _learning_sections(shown: Sequence[ShownRun]) -> Iterator[Section]:
    band = any(not e.shared for s in shown for e in s.run.evaluations)
    yield Section(
        title="Accuracy",
        text="The band is from the worst to the best client: each has lower layers of its own." if band else "",
        plots=tuple(plots.accuracies(shown)),
        without="no evaluation is recorded",
    )
    yield Section(
        title="Loss",
        text="Solid: mean over a round's training batches. Dashed: on held-out data.",
        plots=tuple(plots.loss_plots(shown)),
        without="no round is over",
    )


def _cost_sections(shown: Sequence[ShownRun]) -> Iterator[Section]:
    yield Section(
        title="Bytes by kind",
        text="Counted on the wire: serialized gRPC messages with their prefixes, what was sent again included. Up is "
        "to the server.",
        plots=tuple(plots.traffic(shown)),
        without="no bytes are recorded",
        key=tuple(_KINDS.get(kind, kind) for kind in WIRE_KINDS),
        half=True,
    )
    yield Section(
        title="Where a step's time goes",
        text="From a client's batch to its next one, with the wait for other clients in it.",
        plots=tuple(plots.step(shown)),
        without="no step was timed: this is measured where clients on a network wait for gradients, not in a "
        "simulation",
        key=tuple(_PHASES[phase] for phase in PHASES),
        half=True,
    )
    yield Section(
        title="A step over the rounds",
        text="In the colours of the phases above.",
        plots=tuple(plots.phases(shown)),
        without="",
    )


def _clients_section(shown: Sequence[ShownRun]) -> Section:
    return Section(
        title="Clients",
        text=_left_out(shown),
        plots=tuple(gantt.clients(shown)),
        without="no client has trained",
    )


def _left_out(shown: Sequence[ShownRun]) -> str:
    clients = max((len(timeline(s.run.lines).clients) for s in shown), default=0)
    return (
        f"Of {clients} clients {gantt.MAX_GANTT_ROWS} are shown, first those that left or were too slow."
        if clients > gantt.MAX_GANTT_ROWS
        else ""
    )
