"""Averages of a probe and a fine-tuned model, and soups of models of several schemes.

WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903): weights between the zero-shot and the fine-tuned
model are better out of distribution than either model, with little loss in distribution. Soups
(Wortsman et al. 2022, arXiv 2203.05482): a greedy average of fine-tuned models is better than the
best of the models. This experiment uses the arms of `experiments.lp_ft`: the line from the linear
probe to LP-FT, which starts from a probe of the same seed, and a greedy soup of all nine arms under
three schemes. The share of LP-FT is chosen on validation; in all arms the BatchNorm statistics are
those of the pretrained model.

Hazards: the probe takes the place of a zero-shot model and is far weaker than CLIP; full
fine-tuning starts from another head than LP-FT, so the soup may use only one scheme.

Hardware: 2 CPU cores, minutes.

Command (after ``python -m experiments.lp_ft``, whose arms it reads):
  python -m experiments.wise_soup
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, logging

from experiments.reproduction import RESULTS, Reproduction, Target, record

_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)

REPRODUCTION = Reproduction(
    name="wise_soup",
    paper="Wortsman et al. 2021, arXiv 2109.01903, and 2022, arXiv 2203.05482",
    claim="Halfway between two models is better out of distribution; soups beat their best arm",
    targets=(
        Target("OOD: share 0.5 - LP-FT", 0.0, "above", unit="points of accuracy",
               source="2109.01903, figure 1", second_hand=True),
        Target("ID: chosen share - LP-FT", -0.5, "above", unit="points of accuracy",
               source="2109.01903, figure 1", second_hand=True),
        Target("ID: greedy soup - best arm", 0.0, "above", unit="points of accuracy",
               source="2203.05482: 81.03 against 80.39 % on ImageNet"),
    ),
    hardware="2 CPU cores",
    hazards="a probe for a zero-shot model; ResNet-20 on Bangla digits and their corruptions",
    command="python -m experiments.wise_soup",
    needs="the arms of experiments.lp_ft",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from experiments.ablation_results import find_row, run_ablation
    from finetune_jax.artifact.averaging import average
    from finetune_jax.evaluation.averaging import combine
    from finetune_jax.evaluation.corrupted import corrupted_scores
    from finetune_jax.evaluation.evaluator import Evaluator, open_evaluator, read_config
    from finetune_jax.metrics.paired import bootstrap_difference

    began = time.monotonic()
    outcome, provenance = run_ablation("lp_ft")
    folders = {
        (name, seed): path.parent
        for name in ("linear_probe", "full", "lp_ft")
        for seed, path in find_row(outcome, name).predictions.items()
    }

    def opened(folder: Path, test: str = "test") -> Evaluator:
        from finetune_jax.artifact import Artifact

        config = read_config(folder)
        config.data.test = test
        return open_evaluator(config, Artifact.load(folder))

    def scored(evaluator: Evaluator) -> dict[str, Any]:
        test = evaluator.observe("test")
        corrupted = corrupted_scores(evaluator, "test", _CORRUPTIONS, "3")
        return {
            "validation": evaluator.scores(evaluator.observe("validation"))["accuracy"],
            "test": evaluator.scores(test)["accuracy"],
            "corrupted": corrupted["mean_corrupted"],
            "right": evaluator.task.correct(test),
        }

    curve: dict[int, dict[float, dict[str, Any]]] = {}
    for seed in outcome.seeds:
        probe, tuned = (opened(folders[name, seed]) for name in ("linear_probe", "lp_ft"))
        ends = [probe.variables, tuned.variables]
        curve[seed] = {
            alpha: scored(dataclasses.replace(tuned, variables=average(ends, [1 - alpha, alpha])))
            for alpha in _ALPHAS
        }
    gaps_off, gaps_on = {}, {}
    for seed, at in curve.items():
        # The share is chosen on validation; of equal shares, the largest is closest to LP-FT.
        chosen = max(_ALPHAS, key=lambda a: (at[a]["validation"], a))
        # Out of distribution nothing is chosen: the paper recommends a share of one half.
        gaps_off[seed] = {"gap": at[0.5]["corrupted"] - at[1.0]["corrupted"]}
        gaps_on[seed] = {"gap": at[chosen]["test"] - at[1.0]["test"], "alpha": chosen}
    members = [folders[key] for key in sorted(folders)]
    with tempfile.TemporaryDirectory() as folder:
        soup = combine(members, Path(folder) / "soup", "greedy")
        mixed = scored(opened(Path(folder) / "soup"))
    by_member = {r["member"]: r["accuracy"] for r in soup["rows"]}
    best_arm = opened(Path(max(by_member, key=lambda name: by_member[name])))
    alone = best_arm.task.correct(best_arm.observe("test"))
    assert alone is not None, "classification has correct and wrong predictions"
    gap = 100 * (mixed["right"].mean() - alone.mean())
    low, high, _ = bootstrap_difference(
        lambda rows: 100 * (mixed["right"][rows].mean() - alone[rows].mean()), len(alone)
    )
    from experiments.ablation_results import mean_score
    from experiments.reproduction import Measured

    kept = [next(f"{n}, seed {s}" for (n, s), f in folders.items() if str(f) == member)
            for member in soup["chosen"]["members"]]  # fmt: skip
    shares = ", ".join(f"{x['alpha']:g}" for x in gaps_on.values())
    found = {
        "OOD: share 0.5 - LP-FT": dataclasses.replace(
            mean_score(gaps_off, "gap"), n=len(alone), note="mean of seven corruptions"
        ),
        "ID: chosen share - LP-FT": dataclasses.replace(
            mean_score(gaps_on, "gap"), n=len(alone), note=f"shares of LP-FT chosen: {shares}"
        ),
        "ID: greedy soup - best arm": Measured(
            float(gap), low, high, len(alone), 1,
            f"bootstrap over examples; kept: {'; '.join(kept)}",
        ),
    }  # fmt: skip
    lines = [
        "From the linear probe (share 0) to LP-FT (1), mean over seeds, %:", "",
        "| share of LP-FT | validation | test | corrupted |", "|---|---|---|---|",
    ]  # fmt: skip
    means = {}
    for alpha in _ALPHAS:
        means[alpha] = {
            kind: 100 * sum(at[alpha][kind] for at in curve.values()) / len(curve)
            for kind in ("validation", "test", "corrupted")
        }
        cells = [f"{value:.1f}" for value in means[alpha].values()]
        lines.append(f"| {alpha:g} | " + " | ".join(cells) + " |")
    lines += ["", "![accuracy along the line](curve.png)"]
    RESULTS.joinpath("wise_soup").mkdir(parents=True, exist_ok=True)
    _draw(means, RESULTS / "wise_soup" / "curve.png")
    (RESULTS / "wise_soup" / "curve.json").write_text(json.dumps(means, indent=1) + "\n")
    provenance["seconds"] = time.monotonic() - began
    record(REPRODUCTION, found, provenance, "\n".join(lines))


_CORRUPTIONS = "gaussian_noise,impulse_noise,defocus_blur,fog,contrast,pixelate,jpeg_compression"


def _draw(means: dict[float, dict[str, float]], path: Path) -> None:
    """Draws accuracy under corruptions against test accuracy for all shares of LP-FT."""
    from finetune_jax.reporting import style

    with style.new_figure(5.2, 3.6) as figure:
        axes = figure.subplots()
        x, y = ([m[kind] for m in means.values()] for kind in ("test", "corrupted"))
        axes.plot(x, y, marker="o", ms=5, color=style.MAIN)
        for alpha, a, b in zip(means, x, y, strict=True):
            axes.annotate(f"{alpha:g}", (a, b), (-6, 4), textcoords="offset points", ha="right",
                          size=style.SMALL)  # fmt: skip
        axes.margins(0.08)
        axes.set_xlabel("test accuracy, %")
        axes.set_ylabel("accuracy under corruptions, %")
        axes.set_title("share of LP-FT, the rest the linear probe")
        path.write_bytes(style.saved(figure, "png", dpi=150))


if __name__ == "__main__":
    app.run(main)
