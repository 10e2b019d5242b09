"""One HTML page about a run: its scores and their uncertainty, its parameters, and its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.confidence import temperature_scores
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.predictions import Predictions
from finetune_jax.files import read_json
from finetune_jax.metrics import calibration, names
from finetune_jax.metrics import classification as metrics
from finetune_jax.reporting import charts, html, provenance
from finetune_jax.reporting.further import further
from finetune_jax.reporting.mistakes import mistakes
from finetune_jax.reporting.sentences import sentences

Section = tuple[str, str]


def write_report(
    path: Path,
    workdir: Path,
    evaluator: Evaluator,
    predictions: Predictions,
    found: dict[str, Any],
    command: str,
    base: str = "",
) -> None:
    """Writes the page of a finished run.

    Args:
      path: path of the HTML file.
      workdir: folder of the run.
      evaluator: evaluator of the run.
      predictions: predictions of the split that the page describes.
      found: the JSON object that `finetune_jax.evaluate` prints for the split.
      command: command line that writes the page again.
      base: weight file of the start of the run, if it was moved; empty for the path in the config.

    Raises:
      UserError: the file cannot be written, or the run's folder is incomplete.
    """
    sections = [
        _scores(found),
        _curves(workdir, evaluator),
        *_classes(evaluator, predictions),
        *_confidence(evaluator, predictions),
        *mistakes(evaluator, predictions, workdir),
        *further(found),
        provenance.movement(evaluator, base),
        provenance.plan(workdir),
        provenance.manifest(workdir),
        provenance.config(workdir, command),
    ]
    page = html.page(
        workdir.resolve().name, _header(workdir, evaluator, predictions, found), sections, _footer()
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report={path}: cannot write the file: {error.strerror}") from None


def _header(
    workdir: Path, evaluator: Evaluator, predictions: Predictions, found: dict[str, Any]
) -> str:
    config, about, metric = evaluator.config, predictions.about, evaluator.task.metric
    result = read_json(workdir / "result.json")
    low, high = found.get(f"{metric}_low"), found.get(f"{metric}_high")
    ends = [names.written(metric, end, unit=False) for end in (low, high)]
    interval = f"{ends[0]} to {ends[1]}, 95 %" if low is not None else ""
    audit = result.get("audit") or {}
    cards = [
        (
            names.written(metric, found[metric]),
            f"{names.named(metric).name}, {about['split']}",
            interval,
        ),
        (html.number(found["n_scored"]), "examples scored", "each exactly once"),
        (html.number(result["steps"]), "steps", f"{result['seconds']:.0f} s"),
    ]
    if audit.get("moved_leaves") is not None:
        frozen = f"{audit['frozen_leaves']} bit-identical to the base"
        cards.append((html.number(audit["moved_leaves"]), "leaves moved", frozen))
    boxes = [
        f'<div class="card"><b>{html.text(value)}</b>{html.text(name)}<br>'
        f"<span>{html.text(more)}</span></div>"
        for value, name, more in cards
    ]
    lead = (
        f"{config.model.name} under the scheme {result['scheme']}; {evaluator.task.name} on "
        f"{about['source']}, {about['split_text']!r}; seed {config.seed}"
    )
    for change in result.get("accepted", []):
        lead += f"; at step {change['step']}: {', '.join(change['changes'])}"
    said = " ".join(sentences(found, evaluator.task, predictions.observed))
    first = f'<p class="result">{html.text(said)}</p>'
    return f'{first}<p class="lead">{html.text(lead)}</p><div class="cards">{"".join(boxes)}</div>'


def _scores(found: dict[str, Any]) -> Section:
    rows = []
    for name, value in found.items():
        if not isinstance(value, int | float) or name.endswith(("_low", "_high")):
            continue
        ends = [
            names.written(name, found.get(f"{name}_{end}"), unit=False) for end in ("low", "high")
        ]
        rows.append([names.named(name).name, names.written(name, value), *ends])
    body = html.table(["score", "value", "low", "high"], rows, numeric=(1, 2, 3), scroll=False)
    return "Scores", (
        "<p>With 95 % intervals where a score has one: Wilson's for shares, bootstrap over "
        f"examples for the others. A dash: undefined or without an interval.</p>{body}"
    )


def _curves(workdir: Path, evaluator: Evaluator) -> Section:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line]
    svg = charts.curves(rows, evaluator.task.metric)
    metric = names.named(evaluator.task.metric).name
    return "Learning curves", (
        "<p>Training values are means over the steps since the point before; validation values are "
        "of the whole split.</p>" + html.figure(svg, f"loss and {metric} against the training step")
    )


def _classes(evaluator: Evaluator, predictions: Predictions) -> list[Section]:
    task, observed = evaluator.task, predictions.observed
    logits = task.class_logits(observed)
    if logits is not None:
        predicted, labels = logits[0].argmax(-1), logits[1]
    elif task.class_names and "predicted" in observed:
        predicted, labels = observed["predicted"], observed["label"]
    elif "predicted" in observed:
        svg = charts.scatter(observed["predicted"], observed["label"])
        return [("Predictions", html.figure(svg, "predictions against targets"))]
    else:
        return _each_class(task.per_class(observed), "pixels" if "table" in observed else "")
    classes = list(task.class_names)
    table = metrics.confusion(predicted, labels, len(classes))
    each = metrics.per_class(table)
    scores = ("recall", "precision", "f1")
    rows = [
        [
            name,
            int(each["n"][i]),
            *(names.written(score, float(each[score][i]), unit=False) for score in scores),
        ]
        for i, name in enumerate(classes)
    ]
    header = ["class", "examples", *map(names.heading, scores)]
    numbered = charts.numbered(classes)
    if numbered or len(classes) > 20:
        header, rows = ["no.", *header], [[f"#{i}", *row] for i, row in enumerate(rows)]
    numeric = range(len(header) - 4, len(header))
    per_class = html.table(header, rows, numeric=numeric, words=(len(header) - 5,))
    figure = html.figure(charts.confusion(table, classes), "confusion matrix")
    off = table - np.diag(np.diag(table))
    order = np.argsort(-off, axis=None, kind="stable")[:20]
    pairs = [(i // len(classes), i % len(classes)) for i in order.tolist() if off.flat[i]]
    confused = html.table(
        ["label", "predicted as", "examples"],
        [[classes[i], classes[j], int(off[i, j])] for i, j in pairs],
        numeric=(2,),
    )
    width = 96 * charts.confusion_side(len(classes))
    body = (
        f"<p>Rows are labels; shades are shares of a row.{numbered}</p>"
        f'<div class="pair"><div style="flex-basis:{width:.0f}px">'
        f'{figure}</div><div class="beside">{per_class}</div></div>'
    )
    if pairs:
        body += f"<details><summary>Most frequent confusions</summary>{confused}</details>"
    return [("Classes", body)]


def _each_class(found: dict[str, dict[str, float]], counted: str = "") -> list[Section]:
    """The scores of each class of a task without a confusion matrix.

    Args:
      found: result of `Task.per_class`.
      counted: what ``n`` counts, where that is not examples.
    """
    if not found:
        return []
    rows = [
        [name, *(names.written(score, value, unit=False) for score, value in scores.items())]
        for name, scores in found.items()
    ]
    scores = list(next(iter(found.values())))
    headings = [counted if x == "n" and counted else names.heading(x) for x in scores]
    return [("Classes", html.table(["class", *headings], rows, numeric=range(1, len(scores) + 1)))]


def _confidence(evaluator: Evaluator, predictions: Predictions) -> list[Section]:
    task, observed = evaluator.task, predictions.observed
    found = task.class_logits(observed)
    if found is None:
        return []
    logits, labels = found
    drawn = {"as trained": calibration.reliability(logits, labels)}
    if evaluator.config.data.validation:
        on_validation = predictions.about["split"] == "validation"
        fitted = observed if on_validation else evaluator.observe("validation")
        values = temperature_scores(task, fitted, observed)
        heat = values["temperature"]
        drawn[f"with temperature {heat:.3g}"] = calibration.reliability(logits / heat, labels)
        rows = [
            [
                names.named(name).name,
                *(names.written(name, values[f"{name}_{when}"]) for when in ("before", "after")),
            ]
            for name in ("nll", "ece", "brier")
        ]
        table = html.table(
            ["score", "as trained", "with temperature"], rows, numeric=(1, 2), scroll=False
        )
        words = f"The temperature {heat:.4g} is fitted on validation"
        words += (
            ", which is also the split shown, so the improvement is biased."
            if on_validation
            else "."
        )
    else:
        table, words = "", "Temperature scaling: not run (needs a validation split)."
    coverage, risk = calibration.selective(logits, labels)
    area = names.written("aurc", calibration.area_under_risk(logits, labels))
    return [
        (
            "Calibration",
            f"<p>{html.text(words)} The darker a bin, the more examples it has.</p>"
            + html.figure(charts.calibration(drawn), "reliability diagram")
            + table,
        ),
        (
            "Selective prediction",
            "<p>The error that is left when only the most confident predictions are answered; area "
            f"under the curve {area}.</p>"
            + html.figure(charts.risk_coverage(coverage, risk), "error against coverage"),
        ),
    ]


def _footer() -> str:
    return f"finetune_jax evaluate --report, jax {html.text(jax.__version__)}"
