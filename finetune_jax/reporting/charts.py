"""Figures of an HTML page, each for wide and for narrow screens; see `reporting.style`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.metrics import names
from finetune_jax.reporting import style
from finetune_jax.reporting.fonts import drawable, drawn
from finetune_jax.reporting.style import FAINT, INK, MAIN, PAPER, SMALL, SOFT, WARN, on_both_screens
from finetune_jax.tables import shorten


def label(name: Any, length: int = 32) -> str:
    """A name of any origin as a figure shows it: short, in one line, and never a formula."""
    return drawn(shorten(name, length)).replace("$", r"\$")


def class_label(name: str, number: int) -> str:
    """The name of a class as `label`, or ``#`` and its number where a figure cannot draw it."""
    return label(name) if drawable(shorten(name, 32)) else f"#{number}"


def numbered(classes: Sequence[str]) -> str:
    """The sentence about classes that a figure shows by number; empty without such classes."""
    if not all(drawable(shorten(name, 32)) for name in classes):
        return " Names that the figure cannot draw stand there by their number in the table."
    if _too_long(classes):
        return " On a narrow screen, the figure shows classes by their number in the table."
    return ""


def _too_long(classes: Sequence[str]) -> bool:
    """Whether a narrow figure has no room for the names."""
    return len(classes) > 6 and max(map(len, classes)) > 3 or max(map(len, classes)) > 12


class _Drawing:
    """Holds the SVG text of a figure once the figure is complete."""

    svg: str = ""


@contextlib.contextmanager
def _figure(
    width: float, height: float, panels: int = 1, **options: Any
) -> Iterator[tuple[list[Any], _Drawing]]:
    """Yields (axes of each panel, drawing); when the context ends, ``drawing.svg`` is the figure.

    Panels are side by side, and below each other on a narrow screen, where each has `height`.
    """
    drawing = _Drawing()
    lines = panels if style.is_narrow() else 1
    width = min(width, style.NARROW if style.is_narrow() else style.WIDE)
    with style.new_figure(width, height * lines) as figure:
        grid = figure.subplots(lines, panels // lines, squeeze=False, **options)
        yield list(grid.flat), drawing
        drawing.svg = style.inline(figure)


@on_both_screens
def curves(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Loss and headline metric against the step, for training and validation.

    Args:
      rows: rows of ``metrics.jsonl``.
      metric: name of the task's headline metric.
    """
    from matplotlib.ticker import MaxNLocator

    last = max((r["step"] for r in rows), default=1)
    with _figure(style.WIDE, 2.8, 1 if metric == "loss" else 2) as (panels, drawing):
        for axes, name in zip(panels, dict.fromkeys(("loss", metric)), strict=True):
            for split, colour in (("train", FAINT), ("validation", MAIN)):
                points = [
                    (r["step"], r[name])
                    for r in rows
                    if r["split"] == split and r.get(name) is not None
                ]
                if points:
                    # A single point is no line: few points have a marker each.
                    marker = "o" if split == "validation" or len(points) < 12 else ""
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
            axes.set_title(label(names.heading(name)))
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            # Both panels have the same steps, also where one has a single point.
            axes.set_xlim(0, 1.03 * last)
            style.in_percent(axes.yaxis, name)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return drawing.svg


def confusion_side(classes: int) -> float:
    """Width and height in inches of the confusion matrix of so many classes on a wide screen."""
    return min(style.WIDE, 2.4 + 0.34 * classes)


@on_both_screens
def confusion(table: np.ndarray, classes: Sequence[str]) -> str:
    """Confusion matrix: shades are shares of each row; cells have their counts where these fit.

    Args:
      table: counts i64[classes, classes], labels in rows and predictions in columns.
      classes: names of the classes; see `class_label`.
    """
    from matplotlib.ticker import MaxNLocator

    count = len(classes)
    side = style.NARROW if style.is_narrow() else confusion_side(count)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    numbers = style.is_narrow() and _too_long(classes)
    labels = [f"#{i}" if numbers else class_label(name, i) for i, name in enumerate(classes)]
    long = max(map(len, labels)) > 3
    room = side * 96 - (40 if numbers else 30 + 7.5 * max(map(len, labels))) - 30
    with _figure(side, side) as ((axes,), drawing):
        axes.imshow(shaded(shares))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if count <= 30 and room / count >= 15:
            axes.set_xticks(range(count), labels, rotation=90 if long else 0)
            axes.set_yticks(range(count), labels)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True))
        if room / count >= 7.4 * len(str(table.max())) + 2:
            for i, j in zip(*np.nonzero(table), strict=True):
                colour = style.ON_MAIN if shares[i, j] > 0.55 else INK
                axes.text(
                    j, i, str(table[i, j]), ha="center", va="center", color=colour, size=SMALL
                )
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
    return drawing.svg


def shaded(shares: np.ndarray) -> np.ndarray:
    """Shares f[rows, columns] in [0, 1] as pixels of the main colour, f[rows, columns, 4].

    Small shares are transparent, so that they are right on a white and on a dark page.
    """
    from matplotlib.colors import to_rgb

    colours = np.empty((*shares.shape, 4))
    colours[..., :3] = to_rgb(MAIN)
    colours[..., 3] = np.clip(shares, 0, 1)
    return colours


@on_both_screens
def calibration(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    """Reliability diagrams side by side; bins with more examples are darker.

    Args:
      curves: results of `finetune_jax.metrics.calibration.reliability`, by title.
    """
    with _figure(style.WIDE, 3.2, len(curves)) as (panels, drawing):
        for axes, (title, (counts, means, accuracies)) in zip(panels, curves.items(), strict=True):
            bins = len(counts)
            edges = np.arange(bins) / bins
            filled = counts > 0
            depth = np.sqrt(counts[filled] / max(counts.max(), 1))
            bars = axes.bar(edges[filled], accuracies[filled], 1 / bins, align="edge", color=MAIN,
                            edgecolor=PAPER, linewidth=0.8, label="accuracy")  # fmt: skip
            for bar, share in zip(bars, depth, strict=True):
                bar.set_alpha(0.25 + 0.65 * share)
            axes.plot(means[filled], means[filled], "_", color=WARN, ms=11, mew=2,
                      label="mean confidence")  # fmt: skip
            axes.plot([0, 1], [0, 1], "--", color=FAINT, lw=1)
            axes.set(xlim=(0, 1), ylim=(0, 1), title=label(title))
            axes.set_xlabel("confidence, %")
            axes.set_ylabel("accuracy, %")
            for axis in (axes.xaxis, axes.yaxis):
                style.in_percent(axis, "accuracy")
        handles = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(*handles, loc="outside upper right", ncols=2)
    return drawing.svg


@on_both_screens
def risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> str:
    """Risk-coverage curve: the error of the most confident share of examples.

    Args:
      coverage: shares of answered examples, in [0, 1].
      risk: error of the answered examples, in [0, 1].
    """
    with _figure(style.WIDE, 2.7) as ((axes,), drawing):
        axes.plot(100 * coverage, 100 * risk, color=MAIN)
        axes.fill_between(100 * coverage, 100 * risk, color=MAIN, alpha=0.12, linewidth=0)
        axes.set(xlim=(0, 100), xlabel="coverage, % of examples answered", ylabel="error, %")
        axes.set_ylim(bottom=0)
    return drawing.svg


@on_both_screens
def scatter(predicted: np.ndarray, labels: np.ndarray) -> str:
    """Predictions f[n] against targets f[n], and how often each error occurs."""
    from matplotlib.ticker import MaxNLocator

    with _figure(style.WIDE, 3.3, 2) as ((axes, errors), drawing):
        ends = [min(predicted.min(), labels.min()), max(predicted.max(), labels.max())]
        axes.plot(ends, ends, "--", color=FAINT, lw=1)
        axes.plot(labels, predicted, ".", color=MAIN, alpha=0.5, ms=5, rasterized=len(labels) > 5e3)
        axes.set(xlabel="target", ylabel="predicted", title="each example")
        errors.hist(predicted - labels, bins=min(30, 5 + len(labels) // 10), color=MAIN, alpha=0.8)
        errors.axvline(0, color=FAINT, ls="--", lw=1)
        errors.set(xlabel="predicted − target", ylabel="examples", title="errors")
        errors.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        for panel in (axes, errors):
            panel.xaxis.set_major_locator(MaxNLocator(5))
    return drawing.svg


@on_both_screens
def movement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Relative change of the parameters of each stage that moved, from input to output.

    Args:
      rows: rows of `finetune_jax.evaluation.drift.parameter_movement` with a change.
    """
    with _figure(style.WIDE, 0.75 + 0.25 * len(rows)) as ((axes,), drawing):
        names = [label(row["stage"], 18 if style.is_narrow() else 32) for row in rows]
        values = [row["relative"] for row in rows]
        axes.barh(range(len(rows)), values, color=MAIN, height=0.7)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0, 1.2 * (max(values, default=0) or 1.0))
        axes.locator_params(axis="x", nbins=5)
        for i, value in enumerate(values):
            axes.annotate(f"{value:.3g}", (value, i), (4, 0), textcoords="offset points",
                          va="center", size=SMALL, color=SOFT)  # fmt: skip
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("change relative to the weight file, |w − w0| / |w0|")
        if style.is_narrow():
            axes.set_xlabel("|w − w0| / |w0|")
    return drawing.svg


@on_both_screens
def corruptions(
    scores: Mapping[str, Sequence[float]], severities: Sequence[int], clean: float, metric: str
) -> str:
    """Scores under each corruption as points of a line; higher severities are darker.

    Args:
      scores: a score per severity, by corruption.
      severities: the severities.
      clean: score without corruption.
      metric: name of the score.
    """
    with _figure(style.WIDE, 1.2 + 0.25 * len(scores)) as ((axes,), drawing):
        shades = np.linspace(0.3, 1.0, len(severities))
        places = np.arange(len(scores))
        values = np.array(list(scores.values()), float)
        axes.hlines(places, values.min(1), values.max(1), color=FAINT, lw=1)
        for i, severity in enumerate(severities):
            axes.plot(values[:, i], places, "o", ms=6, color=MAIN, alpha=shades[i], mew=0,
                      label=f"severity {severity}")  # fmt: skip
        axes.axvline(clean, color=WARN, lw=1, ls="--", label="clean")
        length = 18 if style.is_narrow() else 32
        axes.set_yticks(places, [label(name.replace("_", " "), length) for name in scores])
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label(names.heading(metric), 60))
        style.in_percent(axes.xaxis, metric)
        axes.grid(axis="y", visible=False)
        columns = 2 if style.is_narrow() else len(severities) + 1
        axes.figure.legend(loc="outside upper right", ncols=columns)
    return drawing.svg
