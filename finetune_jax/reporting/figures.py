"""Figures as PNG files, drawn without a display, in the style of `reporting.style`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jax.metrics import names
from finetune_jax.reporting import style
from finetune_jax.reporting.charts import label
from finetune_jax.reporting.plan_tables import highest_below_head
from finetune_jax.tables import count

_DPI = 150


def accuracy_against_cost(results: Sequence[dict[str, Any]], path: Path, about: str) -> None:
    """Test accuracy with its interval against step FLOPs, one labelled point per scheme.

    The FLOPs are counted in the compiled step of the run, which excludes a cached prefix.

    Args:
      results: results of `training.loop.train` with ``test`` scores.
      path: path of the PNG file.
      about: model, data and number of examples, for the title.
    """
    results = sorted(results, key=lambda r: r["cost"]["flops"])
    with style.new_figure(6.6, 3.9) as figure:
        axes = figure.subplots()
        for result in results:
            score, flops = result["test"], result["cost"]["flops"] / 1e9
            value = 100 * score["accuracy"]
            ends = [[value - 100 * score["accuracy_low"]], [100 * score["accuracy_high"] - value]]
            axes.errorbar(flops, value, ends, fmt="o", capsize=4, color=style.MAIN, elinewidth=1)
            words = f"{label(result['scheme'])}\n{value:.1f} %, {count(flops * 1e9)}"
            axes.annotate(words, (flops, value), (8, 0), textcoords="offset points", va="center",
                          size=style.SMALL, linespacing=1.3)  # fmt: skip
        axes.set_title(label(about, 80))
        axes.set_xlabel("GFLOPs of a training step, frozen prefix cached")
        axes.set_ylabel("test accuracy, % (95 % interval)")
        top = max(r["cost"]["flops"] for r in results) / 1e9
        # A margin at the left: a probe with a cached prefix costs almost nothing.
        axes.set_xlim(-0.03 * top, 1.22 * top)
        path.write_bytes(style.saved(figure, "png", dpi=_DPI))


def interpolation(
    rows: Sequence[dict[str, Any]], models: Sequence[str], metric: str, path: Path
) -> None:
    """Validation score of interpolations between two models, with its interval if it has one.

    Args:
      rows: ``alpha``, the metric, the metric with the suffixes ``_low`` and ``_high``, and
        ``recomputed``, whether BatchNorm statistics were recomputed, which a hollow point shows.
      models: names of the models at alpha 0 and at alpha 1.
      metric: name of the metric, such as ``accuracy``.
      path: path of the PNG file.
    """
    rows = sorted(rows, key=lambda r: r["alpha"])
    alphas = [r["alpha"] for r in rows]
    with style.new_figure(6.4, 3.8) as figure:
        axes = figure.subplots()
        if f"{metric}_low" in rows[0]:
            low, high = ([r[f"{metric}_{end}"] for r in rows] for end in ("low", "high"))
            axes.fill_between(alphas, low, high, color=style.MAIN, alpha=0.15, linewidth=0)
        axes.plot(alphas, [r[metric] for r in rows], marker="o", ms=5, color=style.MAIN)
        if again := [r for r in rows if r.get("recomputed")]:
            axes.plot(
                [r["alpha"] for r in again],
                [r[metric] for r in again],
                "o",
                ms=5,
                color=style.MAIN,
                markerfacecolor=style.PAPER,
                label="BatchNorm statistics recomputed",
            )
            axes.legend()
        axes.set_xlabel(f"share of {label(models[1])}, the rest {label(models[0])}")
        axes.set_ylabel(f"validation {label(names.heading(metric), 60)} (95 % interval)")
        style.in_percent(axes.yaxis, metric)
        path.write_bytes(style.saved(figure, "png", dpi=_DPI))


def stage_profile(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Relative gradient norm and signal-to-noise ratio per stage, as bars from input to output.

    Args:
      rows: rows of `training.importance.by_stage`.
      path: path of the PNG file.
    """
    titles = {
        "rgn": "relative gradient norm, |g| / |w|",
        "snr": "signal to noise, |mean g|² / var g",
    }
    with style.new_figure(8.0, 0.8 + 0.25 * len(rows)) as figure:
        both = figure.subplots(1, 2, sharey=True)
        for axes, (key, title) in zip(both, titles.items(), strict=True):
            top = 1.15 * highest_below_head(rows, key)
            values = [min(row[key], top) for row in rows]
            axes.barh(range(len(rows)), values, color=style.MAIN, height=0.7)
            for place, row in enumerate(rows):
                if row[key] > top:  # the head, beside which the other stages would be invisible
                    text = f"{row[key]:.3g}, beyond the scale "
                    axes.text(top, place, text, ha="right", va="center", color=style.ON_MAIN,
                              size=style.SMALL)  # fmt: skip
            axes.set_xlim(0, top)
            axes.set_xlabel(title)
            axes.grid(axis="y", visible=False)
        both[0].set_yticks(range(len(rows)), [label(row["stage"]) for row in rows])
        both[0].set_ylim(len(rows) - 0.4, -0.6)
        path.write_bytes(style.saved(figure, "png", dpi=_DPI))


def stage_sensitivity(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean logit difference and bytes saved of each stage that is quantized alone, as bars.

    Args:
      rows: rows of `evaluation.quantizing.sensitivity` with ``format``.
      path: path of the PNG file.
    """
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    formats = list(dict.fromkeys(row["format"] for row in rows))
    height = 0.8 / len(formats)
    with style.new_figure(8.0, 1.0 + 0.3 * len(stages) * max(1, len(formats) / 2)) as figure:
        both = figure.subplots(1, 2, sharey=True)
        titles = (
            ("mean_logit_difference", "mean logit difference", 1),
            ("saved_bytes", "saved (KiB)", 1024),
        )
        for axes, (key, title, unit) in zip(both, titles, strict=True):
            for number, name in enumerate(formats):
                mine = [row for row in rows if row["format"] == name]
                places = [stages.index(row["stage"]) + height * number for row in mine]
                values = [row[key] / unit for row in mine]
                axes.barh(places, values, height=height, label=name)
            axes.set_xlabel(title)
            axes.grid(axis="y", visible=False)
        middle = height * (len(formats) - 1) / 2
        both[0].set_yticks([i + middle for i in range(len(stages))], [label(s) for s in stages])
        both[0].invert_yaxis()
        both[1].legend()
        path.write_bytes(style.saved(figure, "png", dpi=_DPI))
