"""Section of a page with the examples of the worst predictions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.predictions import Predictions
from finetune_jax.metrics import calibration
from finetune_jax.reporting import html

SHOWN = 18
"""Number of examples in the section."""


def mistakes(
    evaluator: Evaluator, predictions: Predictions, workdir: Path
) -> list[tuple[str, str]]:
    """The most confident mistakes of a classifier, or the examples of highest loss of other tasks.

    Examples that are files have their path, and the section has the command that predicts the
    first of them again.

    Args:
      evaluator: evaluator of the run.
      predictions: predictions of a split.
      workdir: folder of the run.

    Returns:
      A list with one section, (heading, HTML); an empty list if there are no mistakes.
    """
    task, observed = evaluator.task, predictions.observed
    examples = evaluator.examples(predictions.about["split"])
    found = task.class_logits(observed)
    if found is None:
        heading, words = "Highest losses", "Examples with the highest loss."
        chosen = np.argsort(-observed["loss"], kind="stable")[:SHOWN]
        captions = [_loss(observed, i) for i in chosen]
    else:
        heading = "Most confident mistakes"
        logits, labels = found
        chances = np.exp(calibration.log_softmax(logits))
        predicted = logits.argmax(-1)
        wrong = np.flatnonzero(predicted != labels)
        words = f"{len(wrong):,} of {len(labels):,} examples are wrong."
        chosen = wrong[np.argsort(-chances[wrong].max(-1), kind="stable")][:SHOWN]
        captions = [
            f'<span class="wrong">{html.name(task.class_names[predicted[i]])} '
            f'{_percent(chances[i].max())}</span><br><span class="right">'
            f"{html.name(task.class_names[labels[i]])} {_percent(chances[i, labels[i]])}</span>, "
            f"example\xa0{i}"
            for i in chosen
        ]
    if not len(chosen):
        return []
    boxes = [
        f'<div class="mistake">{_shown(evaluator, examples[int(i)], int(i))}{caption}'
        f"{_where(evaluator, examples[int(i)])}</div>"
        for i, caption in zip(chosen, captions, strict=True)
    ]
    kind = " texts" if evaluator.preprocess.kind == "text" else ""
    hint = " Red: predicted; green: the label; each with its probability." if found else ""
    body = f'<p>{words}{hint}</p><div class="mistakes{kind}">{"".join(boxes)}</div>'
    return [(heading, body + _repeated(evaluator, examples[int(chosen[0])], workdir))]


def _percent(share: float) -> str:
    """A probability with a space that does not break a line."""
    return f"{100 * share:.1f}\xa0%"


def _shown(evaluator: Evaluator, example: dict[str, Any], index: int) -> str:
    columns = evaluator.preprocess.columns
    if evaluator.preprocess.kind != "text":
        return "".join(html.picture(example[column], f"example {index}") for column in columns)
    quotes = []
    for column in columns:
        value = example[column]
        words = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        quotes.append(f'<blockquote dir="auto">{html.text(words)}</blockquote>')
    return "".join(quotes)


def _paths(evaluator: Evaluator, example: dict[str, Any]) -> list[str]:
    """Paths of the image files of an example; empty where the source has no files."""
    columns = [c.replace("image", "path") for c in evaluator.preprocess.columns if "image" in c]
    return [str(example[column]) for column in columns if isinstance(example.get(column), str)]


def _repeated(evaluator: Evaluator, example: dict[str, Any], workdir: Path) -> str:
    """The command that predicts an example again, where the example is one file."""
    paths = _paths(evaluator, example)
    if len(paths) != 1:
        return ""
    line = ["python", "-m", "finetune_jax.predict", f"--workdir={workdir}", paths[0], "--json"]
    return html.command("The first of them is predicted again by:", shlex.join(line))


def _where(evaluator: Evaluator, example: dict[str, Any]) -> str:
    paths = "<br>".join(html.name(path) for path in _paths(evaluator, example))
    return f'<br><span class="where">{paths}</span>' if paths else ""


def _loss(observed: dict[str, np.ndarray], index: int) -> str:
    lines = [
        f"{name} {float(observed[name][index]):.4g}"
        for name in ("predicted", "cosine", "label")
        if name in observed and observed[name].ndim == 1
    ]
    loss = html.number(float(observed["loss"][index]))
    return "<br>".join(map(html.text, [*lines, f"loss {loss}, example\xa0{index}"]))
