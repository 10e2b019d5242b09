"""Draws a figure without a display, as SVG, PNG and PDF."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_jax.ablation.report.layout import one_line
from finetune_jax.metrics import names
from finetune_jax.reporting import charts
from finetune_jax.reporting.fonts import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_LINE = 11.0
"""Height of a line of text in a label, in points."""


@dataclasses.dataclass
class Drawing:
    """A figure in three formats.

    Attributes:
      name: name of the files, without extension.
      title: title in one line.
      svg: content of the SVG file, with letters as paths.
      png: content of the PNG file.
      pdf: content of the PDF file.
    """

    name: str
    title: str
    svg: str = ""
    png: bytes = b""
    pdf: bytes = b""


@contextlib.contextmanager
def new_drawing(
    name: str, title: str, width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple[np.ndarray, Drawing]]:
    """Yields (grid of axes, drawing); the content of the drawing is set at the end of the context.

    The same calls give the same bytes.

    Args:
      name: see `Drawing`.
      title: see `Drawing`.
      width: width in inches.
      height: height in inches.
      rows: number of rows of axes; all axes share the x axis and the y axis.
      columns: number of columns of axes.
    """
    import matplotlib

    # pyplot is not used: it keeps global state, and it is not safe in threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Drawing(name, title)
    # With font type 42 the text of a PDF can be searched.
    style: dict[str, Any] = {**charts.STYLE, "pdf.fonttype": 42}
    with matplotlib.rc_context(style):  # type: ignore[arg-type]  # keys are a Literal there
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True), drawing
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is computed once for all formats
        drawing.svg = _saved(figure, "svg", metadata={"Date": None}, transparent=True).decode()
        drawing.png = _saved(figure, "png", dpi=160, facecolor="white")
        drawing.pdf = _saved(figure, "pdf", metadata={"CreationDate": None})


def _saved(figure: Figure, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=file_format, **options)
    return file.getvalue()


def height_for(labels: int) -> float:
    """Height in inches of a figure in which so many labels fit below each other."""
    return max(3.8, 1.2 + labels * _LINE / 72)


def width_for(labels: Sequence[str]) -> float:
    """Width in inches of a figure with these labels beside its axes."""
    return 5.4 + 0.065 * max((len(shorten(label)) for label in labels), default=0)


def shorten(label: str, length: int = 56) -> str:
    """A label in one line; the middle of a label longer than `length` becomes an ellipsis.

    Escapes stand for letters that no figure can draw.
    """
    label = drawn(one_line(label))
    if len(label) <= length:
        return label
    return f"{label[: length // 2]}…{label[-(length // 2 - 1) :]}"


def in_percent(axis: Axis, score: str) -> None:
    """Writes the numbers along an axis in per cent, where the score is written so."""
    if names.named(score).percent:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.6g}")


def label_beside(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes labels in a column to the right of the axes, each with a line to its point.

    Must be called last: the limits of the axes must not change afterwards.

    Args:
      axes: axes with the points.
      points: (x, y, label) of each point, x and y in data coordinates.
    """
    from scipy.optimize import isotonic_regression

    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes were removed from their figure"
    figure.draw_without_rendering()  # sets the height of the axes
    box = axes.get_window_extent()
    ordered = sorted(points, key=lambda p: (p[1], p[0]))
    targets = [(axes.transData.transform((x, y))[1] - box.y0) / box.height for x, y, _ in ordered]
    gap = _LINE / 72 * figure.dpi / box.height
    ranks = np.arange(len(ordered)) * gap
    # The heights with the least squared distance to the points, at least one line apart.
    offsets = isotonic_regression(np.asarray(targets) - ranks).x if ordered else ranks
    heights = np.clip(offsets, 0, max(0.0, 1 - gap * (len(ordered) - 1))) + ranks
    for (x, y, label), height in zip(ordered, heights, strict=True):
        axes.annotate(
            shorten(label), (x, y), (1.03, height), textcoords="axes fraction", va="center",
            size=8, color=charts.INK, annotation_clip=False, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": charts.SOFT, "lw": 0.6, "shrinkA": 1,
                        "shrinkB": 4, "alpha": 0.8},
        )  # fmt: skip
