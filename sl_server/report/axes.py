"""What all plots of a report share: sizes, units, and names written at the ends of lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sl_common.host.progress import size

PANEL = (4.8, 3.1)  # inches; one column of a page, and a phone's whole width
BARS = 6.6  # half a page
PAGE_ROWS = 11.5  # a whole page
_GAP = 0.075  # between two names, of the axes' height


def panel(width: float = PANEL[0], height: float = PANEL[1]) -> tuple[Figure, Axes]:
    """An empty plot. Callers draw within svg.STYLE."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def seconds_unit(longest: float) -> tuple[float, str]:
    """What to divide seconds by, and what they are then."""
    return (1.0, "s") if longest < 180 else (60.0, "min") if longest < 3 * 3600 else (3600.0, "h")


def percent(axis: Any) -> None:
    """Ticks of 0 to 1 as per cent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g} %"))


def in_bytes(axis: Any) -> None:
    """Ticks with their unit: 200 MB."""
    axis.set_major_formatter(FuncFormatter(lambda n, _: size(n).replace(".0 ", " ")))
    axis.set_major_locator(MaxNLocator(5, min_n_ticks=2))


def whole(axis: Any) -> None:
    """Ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """(x, y, text, colour) beside the ends of lines, moved apart where they would cover each other."""
    left, right = axes.get_xlim()
    axes.set_xlim(right=right + (right - left) * 0.024 * max((len(text) for _, _, text, _ in ends), default=0))
    low, high = axes.get_ylim()
    below = float("-inf")
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        place = max((y - low) / (high - low), below + _GAP)
        below = place
        axes.annotate(
            text,
            xy=(x, low + place * (high - low)),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            fontweight="bold",
            va="center",
            ha="left",
        )
