"""A matplotlib figure as SVG inside a page, with the page's width, font and colours.

Colours are drawn as stand-ins and become CSS variables, so that one picture works in light and dark mode.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"  # stand-ins for CSS variables
RUN_COLORS = tuple(f"#0101{number:02x}" for number in range(0x11, 0x19))  # one for each run; they repeat
PART_COLORS = tuple(f"#0102{number:02x}" for number in range(0x11, 0x18))  # kinds of bytes, phases of a step
BAD = "#010301"
CSS_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BAD: "bad"}
CSS_VARIABLES |= {color: f"run{number}" for number, color in enumerate(RUN_COLORS)}
CSS_VARIABLES |= {color: f"part{number}" for number, color in enumerate(PART_COLORS)}

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a client may have the name $x$
    "svg.hashsalt": "cutlayer",  # the same figure gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an <svg> element.

    `name` keeps its ids apart from other figures', `label` is the text for screen readers.
    """
    with mpl.rc_context(STYLE):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=_NO_METADATA)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL
    )  # a style element in the figure would apply to the whole page
    asked = {found for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg) for found in pair}
    svg = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in asked else "", svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font-family: [^;\"]+;?", "", svg)
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None, "matplotlib writes a viewBox"
    head = f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-label="{label}"'
    return re.sub(r"<svg[^>]*", head, svg, count=1).strip()
