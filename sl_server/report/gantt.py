"""The clients' timeline as a plot: one row a client, along the run's time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sl_server.report import axes as ax
from sl_server.report import svg
from sl_server.report.plots import Plot, ShownRun, finished
from sl_server.report.timeline import ClientTimeline, Doing, TimelineSpan, timeline

MAX_GANTT_ROWS = 40  # at most; clients that left or were late come first
FINE = 600  # gaps shorter than the run's time divided by this are not visible: their spans are drawn as one


def clients(shown: Sequence[ShownRun]) -> Iterator[Plot]:
    """Yield a plot for each run that had a client."""
    for s in shown:
        found = timeline(s.run.lines)
        rows = _chosen(found.rows)
        if not rows or not found.end:
            continue
        factor, unit = ax.seconds_unit(found.end)
        with mpl.rc_context(svg.STYLE):
            figure, axes = ax.panel(ax.PAGE_ROWS, 0.95 + 0.24 * len(rows))
            for y, client in enumerate(rows):
                _row(axes, y, client, s.color, factor, found.end)
            for moment in found.back:
                axes.axvline(moment / factor, color=svg.BAD, linewidth=1, linestyle=":")
            axes.set_yticks(range(len(rows)), [_short(client.client) for client in rows], color=svg.INK)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(-0.01 * found.end / factor, 1.01 * found.end / factor)
            axes.set_xlabel(f"time since the first wave [{unit}]")
            axes.spines["left"].set_visible(False)
            _legend(axes, s.color, rows, went_back=bool(found.back))
            left_out = len(found.clients) - len(rows)
            caption = "Timeline of the clients" + (f"; {left_out} more are not shown" if left_out else "")
            yield finished(figure, f"clients-{s.number}", caption, "rows", of=s)


def _chosen(timelines: Sequence[ClientTimeline]) -> list[ClientTimeline]:
    first = sorted(timelines, key=lambda client: not (client.left or client.late))[:MAX_GANTT_ROWS]
    names = {client.client for client in first}
    return [client for client in timelines if client.client in names]


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


_LOOKS: dict[Doing, dict[str, Any]] = {
    "here": {"height": 0.06, "color": svg.MUTED, "linewidth": 0, "zorder": 1},
    "train": {"height": 0.62, "zorder": 2},
    "eval": {"height": 0.62, "zorder": 2, "alpha": 0.45},
    "lost": {"height": 0.62, "zorder": 2, "facecolor": "none", "edgecolor": svg.BAD, "hatch": "////", "linewidth": 0.6},
    "away": {"height": 0.3, "zorder": 2, "color": svg.BAD},
}
_MARKS = {"back again": ">", "left": "X", "too slow": "v"}


def _row(axes: Axes, y: int, client: ClientTimeline, color: str, factor: float, end: float) -> None:
    for doing, look in _LOOKS.items():
        spans = list(_joined((span for span in client.spans if span.doing == doing), end / FINE))
        style = {"color": color, "linewidth": 0} | look if doing in ("train", "eval") else look
        start = [span.start / factor for span in spans]
        axes.barh([y] * len(spans), [(s.end - s.start) / factor for s in spans], left=start, **style)
    for what, moments in (("back again", client.joined[1:]), ("left", client.left), ("too slow", client.late)):
        if not moments:
            continue
        axes.plot(
            [m / factor for m in moments],
            [y] * len(moments),
            linestyle="",
            markersize=6,
            markeredgecolor=svg.PAPER,
            clip_on=False,
            marker=_MARKS[what],
            color=svg.INK if what == "back again" else svg.BAD,
            zorder=3,
        )


def _joined(spans: Iterable[TimelineSpan], apart: float) -> Iterator[TimelineSpan]:
    """Join spans that cannot be told apart at the picture's resolution."""
    last: TimelineSpan | None = None
    for span in sorted(spans, key=lambda span: span.start):
        if last is not None and span.start - last.end < apart and span.end - last.start < 4 * apart:
            last = TimelineSpan(doing=last.doing, start=last.start, end=max(last.end, span.end))
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


def _legend(axes: Axes, color: str, rows: Sequence[ClientTimeline], *, went_back: bool) -> None:
    """Draw a legend of the marks that occur, above the plot."""
    doings = {span.doing for client in rows for span in client.spans}
    bars = {"train": "trains", "eval": "evaluates", "lost": "wave not finished", "away": "stream broken"}
    keys: list[Patch | Line2D] = []
    for doing, text in bars.items():
        if doing in doings:
            look = {k: v for k, v in _LOOKS[doing].items() if k not in ("height", "zorder")}
            keys.append(
                Patch(label=text, **({"color": color, "linewidth": 0} | look if doing in ("train", "eval") else look))
            )
    happened = {
        "left": any(c.left for c in rows),
        "back again": any(c.joined[1:] for c in rows),
        "too slow": any(c.late for c in rows),
    }
    for what, did in happened.items():
        if did:
            keys.append(
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker=_MARKS[what],
                    color=svg.INK if what == "back again" else svg.BAD,
                    label=what,
                )
            )
    if went_back:
        keys.append(Line2D([], [], color=svg.BAD, linewidth=1, linestyle=":", label="back to a checkpoint"))
    axes.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=8,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
    )
