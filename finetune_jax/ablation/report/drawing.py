"""Draws a figure without a display, as SVG, PNG and PDF."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from finetune_jax.ablation.report.layout import one_line
from finetune_jax.reporting import style
from finetune_jax.reporting.fonts import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 12.5
"""Height of a line of text in a label, in points."""


@dataclasses.dataclass
class Drawing:
    """A figure in three formats.

    Attributes:
      name: name of the files, without extension.
      title: title in one line.
      svg: SVG element of a page; see `reporting.style.inline`.
      png: content of the PNG file; empty for narrow screens.
      pdf: content of the PDF file; empty for narrow screens.
      rows: labels of the rows that `label_rows` wrote, in the order of their numbers.
    """

    name: str
    title: str
    svg: str = ""
    png: bytes = b""
    pdf: bytes = b""
    rows: tuple[str, ...] = ()


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
    drawing = Drawing(name, title)
    with style.new_figure(width, height) as figure:
        yield figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True), drawing
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is computed once for all formats
        drawing.svg = style.inline(figure)
        if not style.is_narrow():
            drawing.png = style.saved(figure, "png", dpi=160)
            drawing.pdf = style.saved(figure, "pdf")


def height_for(labels: int) -> float:
    """Height in inches of a figure in which so many labels fit below each other."""
    return max(3.0 if style.is_narrow() else 3.6, 1.2 + labels * _LINE / 72)


def width() -> float:
    """Width in inches of a figure, labels beside its axes included."""
    return style.NARROW if style.is_narrow() else style.WIDE


def shorten(label: str, length: int = 56) -> str:
    """A label in one line; the middle of a label longer than `length` becomes an ellipsis.

    Escapes stand for letters that no figure can draw.
    """
    label = drawn(one_line(label))
    if len(label) <= length:
        return label
    return f"{label[: length // 2]}…{label[-(length // 2 - 1) :]}"


def label_rows(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Labels the point of each row by `label_beside`, or by its number on a narrow screen.

    The page lists the rows with their numbers below a narrow figure.
    """
    if style.is_narrow():
        points = [(x, y, str(number)) for number, (x, y, _) in enumerate(points, 1)]
    label_beside(axes, points)


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
            shorten(label, 40), (x, y), (1.03, height), textcoords="axes fraction", va="center",
            size=style.SMALL, color=style.INK, annotation_clip=False, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": style.FAINT, "lw": 0.6, "shrinkA": 1,
                        "shrinkB": 4, "alpha": 0.8},
        )  # fmt: skip
