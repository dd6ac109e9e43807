"""Sizes, units and line labels that all plots of a report share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sl_common.host.progress import size

PANEL = (4.8, 3.1)  # inches; one column of a page, or a phone's whole width
BARS = 6.6  # inches; half a page
PAGE_ROWS = 11.5  # inches; a whole page
_GAP = 0.075  # between two labels, as a share of the axes' height


def panel(width: float = PANEL[0], height: float = PANEL[1]) -> tuple[Figure, Axes]:
    """Return an empty plot. Callers draw within svg.STYLE."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def seconds_unit(longest: float) -> tuple[float, str]:
    """Return the divisor for seconds, and the resulting unit."""
    return (1.0, "s") if longest < 180 else (60.0, "min") if longest < 3 * 3600 else (3600.0, "h")


def percent(axis: Any) -> None:
    """Format ticks of 0 to 1 as per cent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g} %"))


def in_bytes(axis: Any) -> None:
    """Format ticks with their unit: 200 MB."""
    axis.set_major_formatter(FuncFormatter(lambda n, _: size(n).replace(".0 ", " ")))
    axis.set_major_locator(MaxNLocator(5, min_n_ticks=2))


def whole(axis: Any) -> None:
    """Put ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Label the ends of lines with (x, y, text, colour), moved apart where they would overlap."""
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
