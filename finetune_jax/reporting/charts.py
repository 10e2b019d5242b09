"""Figures of an HTML page as SVG text, drawn without a display."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.reporting.fonts import FAMILY, drawable, drawn
from finetune_jax.tables import shorten

INK, SOFT, MAIN, SECOND, WARN = "#1f2933", "#9aa5b1", "#1f6fb2", "#d9822b", "#b3362b"

STYLE = {
    "font.family": FAMILY,
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    # With a fixed salt, equal figures are equal SVG texts.
    "svg.hashsalt": "finetune_jax",
}


def label(name: Any) -> str:
    """A name of any origin as a figure shows it: short, in one line, and never a formula."""
    return drawn(shorten(name, 32)).replace("$", r"\$")


def class_label(name: str, number: int) -> str:
    """The name of a class as `label`, or ``#`` and its number where a figure cannot draw it."""
    return label(name) if drawable(shorten(name, 32)) else f"#{number}"


def numbered(names: Sequence[str]) -> str:
    """The sentence about classes that a figure shows by their numbers; empty without such names."""
    if all(drawable(shorten(name, 32)) for name in names):
        return ""
    return " The figure shows a class by its number in the table if it cannot draw the name."


class _Drawing:
    """Holds the SVG text of a figure once the figure is complete."""

    svg: str = ""


@contextlib.contextmanager
def _figure(
    width: float, height: float, columns: int = 1, **options: Any
) -> Iterator[tuple[Any, _Drawing]]:
    """Yields (axes, drawing); when the context ends, ``drawing.svg`` holds the figure."""
    import matplotlib

    # pyplot keeps a global state, which figures of several threads would share.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawing = _Drawing()
    # The stubs of matplotlib list each key as a literal, which the keys of a dict constant are not.
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.subplots(1, columns, **options), drawing
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing.svg = text.getvalue()


def curves(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Loss and headline metric against the step, for training and validation.

    Args:
      rows: rows of ``metrics.jsonl``.
      metric: name of the task's headline metric.
    """
    with _figure(8.6, 2.9, 2) as (both, drawing):
        for axes, name in zip(both, ("loss", metric), strict=True):
            for split, colour, marker in (("train", SOFT, ""), ("validation", MAIN, "o")):
                points = [
                    (r["step"], r[name])
                    for r in rows
                    if r["split"] == split and r.get(name) is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4,
                              label=split)  # fmt: skip
            low = f"{name}_low"
            band = [r for r in rows if r["split"] == "validation" and r.get(low) is not None]
            if band:
                axes.fill_between(
                    [r["step"] for r in band],
                    [r[low] for r in band],
                    [r[f"{name}_high"] for r in band],
                    color=MAIN,
                    alpha=0.15,
                    linewidth=0,
                )
            axes.set_title(label(name))
            axes.set_xlabel("step")
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
    return drawing.svg


def confusion(table: np.ndarray, names: Sequence[str]) -> str:
    """Confusion matrix: colours are shares of each row; up to 20 classes, cells have their counts.

    Args:
      table: counts i64[classes, classes], labels in rows and predictions in columns.
      names: class names; see `class_label`.
    """
    classes = len(names)
    side = min(7.5, 1.7 + 0.29 * classes)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    with _figure(side, side) as (axes, drawing):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if classes <= 30:
            names = [class_label(name, i) for i, name in enumerate(names)]
            long = max(map(len, names)) > 3
            axes.set_xticks(range(classes), names, rotation=60 if long else 0,
                            ha="right" if long else "center", rotation_mode="anchor")  # fmt: skip
            axes.set_yticks(range(classes), names)
        if classes <= 20:
            for i, j in zip(*np.nonzero(table), strict=True):
                colour = "white" if shares[i, j] > 0.55 else INK
                axes.text(j, i, str(table[i, j]), ha="center", va="center", color=colour, size=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
    return drawing.svg


def calibration(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    """Reliability diagrams side by side; bins with more examples are darker.

    Args:
      curves: results of `finetune_jax.metrics.calibration.reliability`, by title.
    """
    with _figure(4.3 * len(curves), 3.6, len(curves), sharey=True, squeeze=False) as (
        grid,
        drawing,
    ):
        for axes, (title, (counts, means, accuracies)) in zip(grid[0], curves.items(), strict=True):
            bins = len(counts)
            edges = np.arange(bins) / bins
            filled = counts > 0
            depth = np.sqrt(counts[filled] / max(counts.max(), 1))
            bars = axes.bar(edges[filled], accuracies[filled], 1 / bins, align="edge", color=MAIN,
                            edgecolor="white", linewidth=0.8, label="accuracy")  # fmt: skip
            for bar, share in zip(bars, depth, strict=True):
                bar.set_alpha(0.25 + 0.65 * share)
            axes.plot(means[filled], means[filled], "_", color=WARN, ms=11, mew=2,
                      label="mean confidence")  # fmt: skip
            axes.plot([0, 1], [0, 1], "--", color=SOFT, lw=1)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=label(title))
        grid[0][0].set_ylabel("accuracy")
        grid[0][0].legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    return drawing.svg


def risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> str:
    """Risk-coverage curve: the error of the most confident share of examples.

    Args:
      coverage: shares of answered examples, in [0, 1].
      risk: error of the answered examples, in [0, 1].
    """
    with _figure(5.6, 3.0) as (axes, drawing):
        axes.plot(100 * coverage, 100 * risk, color=MAIN)
        axes.fill_between(100 * coverage, 100 * risk, color=MAIN, alpha=0.12, linewidth=0)
        axes.set(xlim=(0, 100), xlabel="coverage, % of examples answered", ylabel="error, %")
        axes.set_ylim(bottom=0)
    return drawing.svg


def scatter(predicted: np.ndarray, labels: np.ndarray) -> str:
    """Predictions f[n] against targets f[n]."""
    with _figure(4.4, 4.2) as (axes, drawing):
        ends = [min(predicted.min(), labels.min()), max(predicted.max(), labels.max())]
        axes.plot(ends, ends, "--", color=SOFT, lw=1)
        axes.plot(labels, predicted, ".", color=MAIN, alpha=0.5, ms=5, rasterized=len(labels) > 5e3)
        axes.set(xlabel="target", ylabel="predicted")
    return drawing.svg


def movement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Relative change of the parameters of each stage, from input to output.

    Args:
      rows: result of `finetune_jax.evaluation.drift.parameter_movement`.
    """
    with _figure(7.2, 0.9 + 0.26 * len(rows)) as (axes, drawing):
        names = [label(row["stage"]) for row in rows]
        values = [row["relative"] if row["leaves"] else np.nan for row in rows]
        axes.barh(names, np.nan_to_num(values), color=MAIN, height=0.7)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        top = np.nanmax([*values, 0.0]) or 1.0
        axes.set_xlim(0, 1.15 * top)
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            text = f"{value:.3g}" if np.isfinite(value) else "no start to compare with"
            if row["leaves"] and row["moved"] == 0:
                text = "0, bit-identical"
            axes.text((value if np.isfinite(value) else 0) + 0.01 * top, i, text, va="center",
                      size=8, color="#52606d")  # fmt: skip
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("|w − w0| / |w0|")
    return drawing.svg


def corruptions(
    scores: Mapping[str, Sequence[float]], severities: Sequence[int], clean: float
) -> str:
    """Scores under each corruption; higher severities are darker.

    Args:
      scores: a score per severity, by corruption.
      severities: the severities.
      clean: score without corruption.
    """
    import matplotlib

    with _figure(8.6, 3.4) as (axes, drawing):
        count = len(severities)
        shades = matplotlib.colormaps["Blues"](np.linspace(0.35, 0.95, count))
        places = np.arange(len(scores))
        for i, severity in enumerate(severities):
            values = [row[i] for row in scores.values()]
            axes.bar(places + (i - (count - 1) / 2) * 0.8 / count, values, 0.8 / count,
                     color=shades[i], label=f"severity {severity}")  # fmt: skip
        axes.axhline(clean, color=WARN, lw=1, ls="--", label="clean")
        names = [label(name.replace("_", " ")) for name in scores]
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=count + 1, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawing.svg
