"""Scores under common corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.data.batches import cached
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.errors import UserError, nearest
from finetune_jax.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, unavailable
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.scores import NonFinitePredictions


def parse_corruptions(text: str) -> tuple[str, ...]:
    """Returns the names in a list joined by commas; ``all`` gives all available corruptions.

    Raises:
      UserError: an unknown corruption, or a corruption that needs a package that is not installed.
    """
    missing = unavailable()
    if text == "all":
        return tuple(name for name in CORRUPTIONS if name not in missing)
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name in missing:
            raise UserError(f"--corruptions: {name} needs {missing[name]}")
        if name not in CORRUPTIONS:
            raise UserError(
                f"--corruptions: unknown corruption {name!r}.{nearest(name, CORRUPTIONS)}"
            )
    return tuple(dict.fromkeys(names))


def parse_severities(text: str) -> tuple[int, ...]:
    """Returns the severities in a list joined by commas, or ``all``.

    Raises:
      UserError: a severity that is not an integer from 1 to 5.
    """
    if text == "all":
        return SEVERITIES
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(found) <= {str(s) for s in SEVERITIES}:
        raise UserError(f"--severity: expected numbers from 1 to 5, or all, found {text!r}")
    return tuple(int(part) for part in found)


def corrupted_scores(
    evaluator: Evaluator, split: str, names: str, severities: str
) -> dict[str, Any]:
    """The headline metric under every corruption and severity.

    Each image is corrupted at the size of the model's input and before normalisation. The PRNG key
    depends on the config's seed, the corruption and the position of the image in the split, so runs
    with the same seed and image size see the same images. Corrupted values have 8 bits, as in the
    published sets.

    Args:
      evaluator: evaluator of a model of images.
      split: ``train``, ``validation`` or ``test``.
      names: see `parse_corruptions`.
      severities: see `parse_severities`.

    Returns:
      ``metric``, its name; ``severities``; ``clean``, the metric without corruption; ``scores``, a
      list over the severities by corruption; ``mean``, the mean of each list; ``main``, which of
      the fifteen main corruptions were run; ``mean_corrupted``, the mean over these, None without
      any; ``not_run``, the reason by corruption that ``all`` left out.

    Raises:
      UserError: the model reads no images, an unknown name, or predictions that are not finite.
    """
    preprocess = evaluator.preprocess
    # The kind tells a model of single images from a model of pairs, whose class is derived.
    if not isinstance(preprocess, ImagePreprocess) or preprocess.kind != "image":
        raise UserError(
            f"--corruptions: expected a model of images, found a model of {preprocess.kind}s"
        )
    chosen, levels = parse_corruptions(names), parse_severities(severities)
    metric = evaluator.task.metric
    data = evaluator.config.data
    examples = cached(evaluator.examples(split), evaluator.encode, data.cache_bytes, data.workers)
    swap = slice(None, None, -1 if preprocess.channels == "bgr" else 1)

    def measure(name: str | None, level: int = 0) -> float:
        first = 0

        def place(batch: dict[str, np.ndarray]) -> dict[str, Any]:
            nonlocal first
            images = batch["image"][..., swap]
            if name is not None:
                images = corrupt(name, images, level, seed=evaluator.config.seed, first=first)
            first += len(images)
            return evaluator.place({**batch, "image": images[..., swap]})

        try:
            observed = evaluator.observe_examples(examples, place=place)
        except NonFinitePredictions as error:
            which = f"corruption {name} at severity {level}" if name else "without corruption"
            raise UserError(f"{which}: {error}") from None
        return float(evaluator.task.scores(observed)[metric])

    found = {name: [measure(name, level) for level in levels] for name in chosen}
    main = [name for name in chosen if not CORRUPTIONS[name].extra]
    return {
        "metric": metric,
        "severities": list(levels),
        "clean": measure(None),
        "scores": found,
        "mean": {name: float(np.mean(values)) for name, values in found.items()},
        "main": main,
        "mean_corrupted": float(np.mean([found[name] for name in main])) if main else None,
        "not_run": unavailable() if names == "all" else {},
    }
