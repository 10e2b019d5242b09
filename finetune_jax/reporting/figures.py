"""Figures as PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jax.reporting.charts import label
from finetune_jax.reporting.plan_tables import highest_below_head


def accuracy_against_cost(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Test accuracy with its interval against step FLOPs, one labelled point per scheme.

    The FLOPs are counted in the compiled step of the run, which excludes a cached prefix.

    Args:
      results: results of `training.loop.train` with ``test`` scores.
      path: path of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for result in sorted(results, key=lambda r: r["cost"]["flops"]):
        score, flops = result["test"], result["cost"]["flops"] / 1e9
        low = 100 * (score["accuracy"] - score["accuracy_low"])
        high = 100 * (score["accuracy_high"] - score["accuracy"])
        axes.errorbar(
            flops, 100 * score["accuracy"], [[low], [high]], fmt="o", capsize=4,
            label=label(result["scheme"]),
        )  # fmt: skip
    axes.set_xlabel("GFLOPs per training step, prefix cached")
    axes.set_ylabel("test accuracy, % (95 % interval)")
    # A margin at the left: a probe with a cached prefix costs almost nothing.
    axes.set_xlim(left=-0.03 * axes.get_xlim()[1])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="scheme")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def interpolation(
    rows: Sequence[dict[str, Any]], names: Sequence[str], metric: str, path: Path
) -> None:
    """Validation score of interpolations between two models, with its interval if it has one.

    Args:
      rows: ``alpha``, the metric, the metric with the suffixes ``_low`` and ``_high``, and
        ``recomputed``, whether BatchNorm statistics were recomputed, which a hollow point shows.
      names: names of the models at alpha 0 and at alpha 1.
      metric: name of the metric, such as ``accuracy``.
      path: path of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    rows = sorted(rows, key=lambda r: r["alpha"])
    alphas = [r["alpha"] for r in rows]
    if f"{metric}_low" in rows[0]:
        low, high = ([r[f"{metric}_{end}"] for r in rows] for end in ("low", "high"))
        axes.fill_between(alphas, low, high, alpha=0.2, linewidth=0)
    (line,) = axes.plot(alphas, [r[metric] for r in rows], marker="o")
    if again := [r for r in rows if r.get("recomputed")]:
        axes.plot(
            [r["alpha"] for r in again],
            [r[metric] for r in again],
            "o",
            color=line.get_color(),
            markerfacecolor="white",
            label="BatchNorm statistics recomputed",
        )
        axes.legend()
    axes.set_xlabel(f"share of {label(names[1])}, the rest {label(names[0])}")
    axes.set_ylabel(f"validation {label(metric)} (95 % interval)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def stage_profile(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Relative gradient norm and signal-to-noise ratio per stage, as bars from input to output.

    Args:
      rows: rows of `training.importance.by_stage`.
      path: path of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(
        1, 2, figsize=(8.0, 0.6 + 0.3 * len(rows)), layout="constrained", sharey=True
    )
    names = [label(row["stage"]) for row in rows]
    titles = {
        "rgn": "relative gradient norm, |g| / |w|",
        "snr": "signal to noise, |mean g|² / var g",
    }
    for axes, (key, title) in zip(both, titles.items(), strict=True):
        top = 1.15 * highest_below_head(rows, key)
        axes.barh(names, [min(row[key], top) for row in rows])
        for place, row in enumerate(rows):
            if row[key] > top:  # the head, beside which the other stages would be invisible
                text = f"{row[key]:.3g}, beyond the scale "
                axes.text(top, place, text, ha="right", va="center", color="white", size=8)
        axes.set_xlim(0, top)
        axes.set_xlabel(title)
        axes.grid(alpha=0.3, axis="x")
    both[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
