"""The result of a run in one or two sentences, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune_jax.metrics import names
from finetune_jax.tasks import Task

LEVEL = 0.05
"""p-value below which two models are told apart."""


def sentences(found: Mapping[str, Any], task: Task, observed: dict[str, np.ndarray]) -> list[str]:
    """One to three sentences about the scores of a run.

    1. The headline score with its 95 % interval over examples; one run says nothing about seeds.
    2. For classes, if always giving the most frequent class is in the interval or above it.
    3. Where another model was compared: which one is better, if p < 0.05 in McNemar's test, or in
       the paired bootstrap where predictions are not right or wrong.

    Args:
      found: the JSON object that `finetune_jax.evaluate` prints for a split.
      task: the task of the run.
      observed: what the task observed on the split.
    """
    metric = task.metric
    low, high = found.get(f"{metric}_low"), found.get(f"{metric}_high")
    score = names.with_interval(metric, found[metric], low, high)
    name = names.named(metric).name
    said = [
        f"{name[:1].upper()}{name[1:]} is {score} on {found['n_scored']:,} examples of the split "
        f"{found['split']} ({'95 % interval over examples; ' if low is not None else ''}"
        "one run, so training again with another seed is not covered)."
    ]
    known = task.class_logits(observed)
    if metric == "accuracy" and low is not None and high is not None and known is not None:
        frequent = float(np.bincount(known[1]).max() / len(known[1]))
        if low <= frequent:
            said.append(
                "That is not told apart from always giving the most frequent class, which is right "
                f"for {names.written(metric, frequent)}."
                if frequent <= high
                else "Always giving the most frequent class is right more often, for "
                f"{names.written(metric, frequent)}."
            )
    if "against" in found:
        said.append(against(found["against"]))
    return said


def against(found: Mapping[str, Any]) -> str:
    """The sentence about a comparison of `finetune_jax.evaluation.against.compare`."""
    metric, other = found["metric"], found.get("other", "the other model")
    test = "p_mcnemar" if "p_mcnemar" in found else "p_bootstrap"
    gap = names.written(metric, found["difference"], sign=True)
    low, high = (
        names.written(metric, found[f"difference_{end}"], sign=True, unit=False)
        for end in ("low", "high")
    )
    detail = f"difference {gap} [{low}, {high}], p = {found[test]:.3f}"
    if not found[test] < LEVEL:
        return f"It is not told apart from {other} on the same examples: {detail}."
    better = found["difference"] > 0 if found["better"] == "max" else found["difference"] < 0
    return f"It is {'better' if better else 'worse'} than {other} on the same examples: {detail}."
