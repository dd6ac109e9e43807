"""The plots of a report, each as SVG with a caption. Each run has a colour and a letter, the same in every plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sl_common.host.progress import size
from sl_common.wire.accounting import WIRE_KINDS
from sl_server.report import axes as ax
from sl_server.report import svg
from sl_server.report.past import EvaluationLine, PastRun, RoundLine
from sl_server.telemetry.names import PHASES

MARKED = 40  # a line with more points gets marks on at most so many


Form = Literal["panel", "bars", "rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """An <svg> element, with a caption."""

    name: str
    svg: str
    caption: str
    form: Form = "panel"
    of: ShownRun | None = None  # the run that it shows, if the report has several


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRun:
    """A run with its colour; the letter is empty if there is only one."""

    run: PastRun
    letter: str
    number: int

    @property
    def color(self) -> str:
        """The run's colour, as a stand-in for a CSS variable."""
        return svg.RUN_COLORS[self.number % len(svg.RUN_COLORS)]


def finished(figure: Figure, name: str, caption: str, form: Form = "panel", of: ShownRun | None = None) -> Plot:
    """Return `figure` as a finished plot."""
    caption += f", run {of.letter}" if of and of.letter else ""
    drawn = svg.inline(figure, name, escape(caption))
    return Plot(name=name, svg=drawn, caption=caption, form=form, of=of if of and of.letter else None)


# --- loss and accuracy against rounds, bytes and time


@dataclass(frozen=True, kw_only=True, slots=True)
class XAxis:
    """The quantity along the x axis."""

    name: str
    label: str
    of: Callable[[PastRun, RoundLine | EvaluationLine], float]
    ticks: Callable[[object], None] = ax.whole


def x_axes(shown: Sequence[ShownRun]) -> list[XAxis]:
    """Return rounds, bytes, and time in a unit that suits the longest run."""
    factor, unit = ax.seconds_unit(max((s.run.seconds for s in shown), default=0.0))
    return [
        XAxis(name="rounds", label="round", of=lambda _run, line: line.round),
        XAxis(
            name="bytes",
            label="bytes on the wire, without evaluation",
            of=lambda run, line: run.bytes_at(line),
            ticks=ax.in_bytes,
        ),
        XAxis(
            name="time",
            label=f"time since the first wave [{unit}]",
            of=lambda _run, line: line.seconds / factor,
            ticks=lambda _axis: None,
        ),
    ]


def accuracies(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield plots of the accuracy on held-out data."""
    if not any(s.run.evaluations for s in shown):
        return
    for axis in x_axes(shown):
        with mpl.rc_context(svg.STYLE):
            figure, axes = ax.panel()
            ends = []
            for s in shown:
                found = s.run.evaluations
                x, y = [axis.of(s.run, e) for e in found], [e.accuracy for e in found]
                if not all(e.shared for e in found):
                    axes.fill_between(
                        x, [e.min for e in found], [e.max for e in found], color=s.color, alpha=0.16, linewidth=0
                    )
                ends += _line(axes, x, y, s.color, s.letter)
            ax.percent(axes.yaxis)
            _label(axes, axis, "accuracy on held-out data")
            ax.name_ends(axes, ends)
            yield finished(figure, f"accuracy-{axis.name}", f"Accuracy against {axis.name}")


def loss_plots(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield plots of the training loss, and of the loss on held-out data."""
    if not any(s.run.rounds for s in shown):
        return
    for axis in x_axes(shown):
        with mpl.rc_context(svg.STYLE):
            figure, axes = ax.panel()
            ends = []
            for s in shown:
                alone = not s.letter
                rounds = [r for r in s.run.rounds if r.loss is not None]
                x, y = [axis.of(s.run, r) for r in rounds], [r.loss for r in rounds if r.loss is not None]
                ends += _line(axes, x, y, s.color, s.letter or "training")
                x, y = [axis.of(s.run, e) for e in s.run.evaluations], [e.loss for e in s.run.evaluations]
                end = _line(axes, x, y, s.color, "held out", dashed=True)
                ends += end if alone else []
            _label(axes, axis, "loss (mean cross entropy)")
            ax.name_ends(axes, ends)
            yield finished(figure, f"loss-{axis.name}", f"Loss against {axis.name}")


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], color: str, text: str, *, dashed: bool = False
) -> list[tuple[float, float, str, str]]:
    """Draw a line; return the place of its label, if it has a label and a last point."""
    mark = "o" if len(x) <= MARKED else ""
    axes.plot(
        x,
        y,
        color=color,
        linestyle=(0, (4, 2)) if dashed else "-",
        marker=mark,
        markerfacecolor=svg.PAPER if dashed else color,
    )
    known = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    return [(*known[-1], text, color)] if known and text else []


def _label(axes: Axes, axis: XAxis, y: str) -> None:
    axes.set_xlabel(axis.label)
    axes.set_title(y, color=svg.INK)
    axes.grid(axis="y")
    axis.ticks(axes.xaxis)


# --- bars of parts


def traffic(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield bars of wire bytes by direction and kind, one for each run and direction."""
    rows = [
        (f"{s.letter} {arrow} {direction}".strip(), s.run.bytes().get(direction, {}))
        for s in shown
        for direction, arrow in (("up", "↑"), ("down", "↓"))
    ]
    if any(parts for _, parts in rows):
        yield _bars(
            rows,
            WIRE_KINDS,
            "traffic",
            "Bytes on the wire by direction and kind",
            size,
            ax.in_bytes,
            "bytes on the wire",
        )


def step(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield bars of a step's time by phase, one for each run."""
    timed = [s for s in shown if s.run.phases]
    if timed:
        rows = [(s.letter or "step", {phase: 1000 * t for phase, t in s.run.phases.items()}) for s in timed]
        yield _bars(
            rows,
            PHASES,
            "step",
            "A step by phase, mean of all steps",
            _ms,
            lambda _axis: None,
            "mean time of a step [ms]",
        )


def _ms(value: float) -> str:
    return f"{value:.3g} ms"


def _bars(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    parts: Sequence[str],
    name: str,
    caption: str,
    words: Callable[[float], str],
    ticks: Callable[[object], None],
    label: str,
) -> Plot:
    with mpl.rc_context(svg.STYLE):
        figure, axes = ax.panel(ax.BARS, 0.9 + 0.42 * len(rows))
        longest = max(sum(values.values()) for _, values in rows)
        for y, (_, values) in enumerate(rows):
            start = 0.0
            for number, part in enumerate(parts):
                width = values.get(part, 0)
                axes.barh(
                    y, width, left=start, height=0.68, color=svg.PART_COLORS[number], edgecolor=svg.PAPER, linewidth=0.6
                )
                start += width
            axes.annotate(words(start), (start, y), (4, 0), textcoords="offset points", va="center", fontweight="bold")
        axes.set_yticks(range(len(rows)), [text for text, _ in rows], color=svg.INK)
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.16 or 1)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        ticks(axes.xaxis)
        return finished(figure, name, caption, "bars")


def phases(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield plots of a step's phases over the rounds, one for each run."""
    for s in shown:
        rounds = [r for r in s.run.rounds if r.timed_steps]
        if len(rounds) < 2:
            continue
        with mpl.rc_context(svg.STYLE):
            figure, axes = ax.panel()
            layers = [[1000 * r.phases.get(phase, 0.0) for r in rounds] for phase in PHASES]
            axes.stackplot(
                [r.round for r in rounds], layers, colors=svg.PART_COLORS, edgecolor=svg.PAPER, linewidth=0.4
            )
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
            axes.set_xlabel("round")
            axes.set_title("mean time of a step [ms]", color=svg.INK)
            ax.whole(axes.xaxis)
            yield finished(figure, f"phases-{s.number}", "A step by phase over the rounds", of=s)
