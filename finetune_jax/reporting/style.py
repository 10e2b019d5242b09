"""The one look of all figures: colours, fonts and sizes, for pages and for files.

Figures of a page are inline SVG with real text. Each is drawn twice, for wide and for narrow
screens, so that its smallest text has at least 11 CSS pixels wherever it is shown; the style sheet
of the page shows one of the two. Colours are those of the page, in its light and its dark theme.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from finetune_jax.metrics import names
from finetune_jax.reporting.fonts import FAMILY

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, SOFT, FAINT, LINE = "#1f2933", "#52606d", "#9aa5b1", "#e4e7eb"
MAIN, SECOND, WARN, PAPER = "#1f6fb2", "#c4660f", "#b3362b", "#ffffff"

ON_MAIN = "#fefefe"
"""Text on `MAIN`, in both themes."""

SMALL = 8.5
"""Smallest size of text in points; 8.5 points are 11.3 CSS pixels."""

WIDE, NARROW = 7.3, 3.5
"""Widths in inches of a figure on a wide and on a narrow screen; 96 CSS pixels are one inch."""

_GROWTH = 1.5
"""By how much a page may enlarge a figure, so that its text does not outgrow that of the page."""

STYLE: dict[str, Any] = {
    "font.family": FAMILY,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.6,
    "savefig.facecolor": PAPER,
    # Text stays text, which a reader can select and a test can measure.
    "svg.fonttype": "none",
    # With a fixed salt, equal figures are equal SVG texts.
    "svg.hashsalt": "finetune_jax",
    "pdf.fonttype": 42,  # the text of a PDF can be searched
}

_VARIABLES = {
    INK: "--ink", SOFT: "--soft", FAINT: "--faint", LINE: "--line", MAIN: "--main",
    SECOND: "--second", WARN: "--warn", PAPER: "--paper",
}  # fmt: skip

_narrow: contextvars.ContextVar[bool] = contextvars.ContextVar("narrow", default=False)


def is_narrow() -> bool:
    """Whether the figure that is being drawn is for a narrow screen."""
    return _narrow.get()


@contextlib.contextmanager
def for_narrow_screens() -> Iterator[None]:
    """Figures that are drawn in this context are for narrow screens."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yields an empty figure in the style of the project, drawn without a display.

    Args:
      width: width in inches.
      height: height in inches.
    """
    import matplotlib

    # pyplot is not used: it keeps global state, which figures of several threads would share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The stubs of matplotlib list each key as a literal, which the keys of a dict are not.
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def in_percent(axis: Axis, score: str) -> None:
    """Writes the numbers along an axis in per cent, where the score is written so."""
    if names.named(score).percent:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.6g}")


def saved(figure: Figure, kind: str, **options: Any) -> bytes:
    """The content of a file ``svg``, ``png`` or ``pdf``; the same figure gives the same bytes."""
    file = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(file, format=kind, metadata=dates.get(kind), **options)
    return file.getvalue()


def inline(figure: Figure) -> str:
    """A figure as an SVG element of a page, in the colours of the theme of the page."""
    text = saved(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    # The ids of one figure must not be those of another figure of the page.
    salt = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{salt}", text)
    for colour, variable in _VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var({variable})", text)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    width = figure.get_size_inches()[0] * 96
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    return text.replace("<svg ", f'<svg style="max-width:{_GROWTH * width:.0f}px" ', 1).strip()


def pair(wide: str, narrow: str) -> str:
    """The two forms of a figure; the style sheet of the page shows one of them."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def on_both_screens(draw: Callable[..., str]) -> Callable[..., str]:
    """Decorator of a function that draws one `inline` figure: returns the `pair` of both forms."""

    @functools.wraps(draw)
    def both(*args: Any, **options: Any) -> str:
        wide = draw(*args, **options)
        with for_narrow_screens():
            return pair(wide, draw(*args, **options))

    return both
