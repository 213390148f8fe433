"""Define the common style of plots, which are PNG bytes, or SVG inside of pages.

Figures are made without pyplot. pyplot keeps global state and needs the main thread, but workers draw in other threads.
"""

import io
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolor_ray.report.colours import COLOURS as COLOURS
from yolor_ray.report.colours import colour as colour

INK, GRID = "#24292f", "#d8dee4"


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Make a white figure; width and height are inches of 110 pixels."""
    figure = Figure(figsize=(width, height), dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, title: str, x_label: str) -> None:
    """Set title and x label, a light grid and no frame on the upper and right side."""
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(x_label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=INK, length=0)


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    # Faster than the default level 6, for a few more bytes.
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def svg_text(figure: Any) -> Markup:
    """Return the figure as an `svg` element whose texts and lines have the colours of the page around it."""
    buffer = io.StringIO()
    # Texts stay texts, and the ids of equal figures are equal.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "yolor_ray"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--line)"))
