"""Figures of an ablation: drawn without a display, and written in three formats alike."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetune_jax.ablation.layout import one_line
from finetune_jax.reporting import charts

_LINE = 11.0
"""Height of a line of a label, in points."""


@dataclasses.dataclass
class Drawing:
    """A figure.

    Attributes:
      name: of its files, without an ending.
      title: what it shows, one line.
      svg: text, whose letters are paths.
      png: its bytes.
      pdf: its bytes.
    """

    name: str
    title: str
    svg: str = ""
    png: bytes = b""
    pdf: bytes = b""


@contextlib.contextmanager
def drawn(
    name: str, title: str, width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple[np.ndarray, Drawing]]:
    """(grid of axes, drawing); afterwards the drawing has its content, the same every time.

    Args:
      name: see `Drawing`.
      title: likewise.
      width: inches.
      height: inches.
      rows: of axes, which share both of theirs.
      columns: likewise.
    """
    import matplotlib

    # Without pyplot: no state outlives the figure, whatever thread draws it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Drawing(name, title)
    # Type 42 keeps the text of a PDF text.
    with matplotlib.rc_context({**charts.STYLE, "pdf.fonttype": 42}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True), drawing
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: once is enough for three formats
        drawing.svg = _saved(figure, "svg", metadata={"Date": None}, transparent=True).decode()
        drawing.png = _saved(figure, "png", dpi=160, facecolor="white")
        drawing.pdf = _saved(figure, "pdf", metadata={"CreationDate": None})


def _saved(figure: Any, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=form, **options)
    return file.getvalue()


def height_for(labels: int) -> float:
    """Inches of a figure in which so many labels fit below each other."""
    return max(3.8, 1.2 + labels * _LINE / 72)


def width_for(labels: Sequence[str]) -> float:
    """Inches of a figure with such labels beside its axes."""
    return 5.4 + 0.065 * max((len(elided(label)) for label in labels), default=0)


def elided(label: str, most: int = 56) -> str:
    """A label in one line, without its middle if it is too long."""
    label = one_line(label)
    if len(label) <= most:
        return label
    return f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def label_beside(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes labels in a column to the right of the axes, each with a line to its point.

    To be called last: the limits of the axes must not change afterwards.

    Args:
      axes: of matplotlib.
      points: (x, y, label), in the units of the data.
    """
    from scipy.optimize import isotonic_regression

    figure = axes.figure
    figure.draw_without_rendering()  # decides how high the axes are
    box = axes.get_window_extent()
    ordered = sorted(points, key=lambda p: (p[1], p[0]))
    wanted = [(axes.transData.transform((x, y))[1] - box.y0) / box.height for x, y, _ in ordered]
    gap = _LINE / 72 * figure.dpi / box.height
    ranks = np.arange(len(ordered)) * gap
    # As near as can be, in the least squares, to the heights of the points, a line apart.
    free = isotonic_regression(np.asarray(wanted) - ranks).x if ordered else ranks
    heights = np.clip(free, 0, max(0.0, 1 - gap * (len(ordered) - 1))) + ranks
    for (x, y, label), height in zip(ordered, heights, strict=True):
        axes.annotate(
            elided(label), (x, y), (1.03, height), textcoords="axes fraction", va="center",
            size=8, color=charts.INK, annotation_clip=False, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": charts.SOFT, "lw": 0.6, "shrinkA": 1,
                        "shrinkB": 4, "alpha": 0.8},
        )  # fmt: skip
