"""The model card of an exported model: a ``README.md`` with the metadata of the hub.

The card has what the run knows, and marks what only the author knows. Paths are left out: the data
and the base are named by what they are, and not by where they lay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from finetune_jax.export.changed import changed_leaves
from finetune_jax.export.formats import FORMATS, Model, format_of
from finetune_jax.export.origin import base_sentence, data_sentence, licence, repository
from finetune_jax.files import digest
from finetune_jax.metrics.names import named, with_interval, written
from finetune_jax.schemes.plan import FROZEN
from finetune_jax.tasks.base import ClassTask

TO_FILL = "**To be filled in by the author.**"
"""Mark of what the run does not know."""

_MANY = 200  # classes that are listed

# Tasks of the hub, by kind of input and by task.
_PIPELINES = {
    ("image", "classification"): "image-classification",
    ("image", "multilabel"): "image-classification",
    ("image", "ordinal"): "image-classification",
    ("image", "segmentation"): "image-segmentation",
    ("image pair", "similarity"): "image-feature-extraction",
    ("text", "classification"): "text-classification",
    ("text", "multilabel"): "text-classification",
    ("text", "ordinal"): "text-classification",
    ("text", "regression"): "text-classification",
    ("text", "similarity"): "sentence-similarity",
}  # fmt: skip


def model_card(model: Model, name: str, found: dict[str, Any]) -> str:
    """The text of the card.

    Args:
      model: what was exported.
      name: name of the format.
      found: result of the comparison, see `finetune_jax.export.agreement.compare`.
    """
    artifact = model.artifact
    kind = artifact.card["model"]["name"].partition("(")[0]
    title = f"{kind} for {artifact.task.name}"
    sections = [
        ("", _summary(model, name)),
        (
            "How to use",
            f"`FOLDER` is this folder.\n\n```python\n{format_of(name).usage(model)}\n```",
        ),
        (
            "Intended use",
            f"{TO_FILL} What the model is for, what it is not for, and who is affected.",
        ),
        ("Scores", _scores(model)),
        ("Evaluation beyond the test split", _further(model.evaluation)),
        ("Data", _data(model)),
        ("Training", _training(model)),
        ("What trained", _trained(model)),
        ("Agreement of this export", _agreement(name, found)),
        ("Versions", _versions(model)),
    ]
    body = "\n\n".join(f"## {head}\n\n{text}" if head else text for head, text in sections if text)
    return f"---\n{_yaml(_metadata(model, name, title))}---\n\n# {title}\n\n{body}\n"


def plain_text(text: str) -> str:
    """A text without what looks like a path, such as the argument of a scheme or of a loss."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}{PurePath(match[2]).name}{match[1]}"

    return re.sub(r"(['\"])([^'\"]*[/\\~][^'\"]*)\1", replaced, text)


def _stored(model: Model, name: str) -> str:
    library = format_of(name).library(model)
    if name != "safetensors":
        return FORMATS[name]
    return f"the folder that {library} opens" if library else "weights for another project's code"


def _metadata(model: Model, name: str, title: str) -> dict[str, Any]:
    """The metadata that the hub reads; keys without a value are left out."""
    artifact = model.artifact
    task, metric = artifact.task, artifact.task.metric
    pipeline = _PIPELINES.get((artifact.preprocess.kind, task.name), "")
    source = str(model.config.get("data", {}).get("source", ""))
    hub_data = source.removeprefix("hf:").split(":")[0] if source.startswith("hf:") else ""
    scores = artifact.card.get("scores", {}).get("test", {})
    results = [
        {
            "task": {"type": pipeline or "other"},
            "dataset": {"name": _data_name(source), "type": hub_data or "other", "split": "test"},
            "metrics": [{"type": metric, "value": scores.get(metric), "name": named(metric).name}],
        }
    ]
    values = {
        "license": licence(model) or "other",
        "library_name": format_of(name).library(model),
        "pipeline_tag": pipeline,
        "base_model": repository(model),
        "datasets": [hub_data] if hub_data else [],
        "metrics": [metric] if metric in scores else [],
        "tags": ["finetune_jax"],
        "model-index": [{"name": title, "results": results}] if metric in scores else [],
    }
    return {key: value for key, value in values.items() if value}


def _yaml(values: Any, indent: str = "") -> str:
    """YAML of nested dicts and lists; texts and numbers are written as JSON, which YAML reads."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{_yaml(value, indent + '  ')}")
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:\n")
            for item in value:
                if isinstance(item, dict):
                    inner = _yaml(item, indent + "  ")
                    lines.append(f"{indent}- {inner[len(indent) + 2 :]}")
                else:
                    lines.append(f"{indent}- {json.dumps(item)}\n")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def _data_name(source: str) -> str:
    kind, _, rest = source.partition(":")
    return rest if kind in ("tfds", "hf") else kind or "unknown"


def _summary(model: Model, name: str) -> str:
    artifact = model.artifact
    scheme = plain_text(str(artifact.card["plan"]["scheme"]))
    licence_ = licence(model)
    known = (
        f"The licence of the base is {licence_}."
        if licence_
        else f"The licence of the base is not known here. {TO_FILL}"
    )
    classes = ""
    if isinstance(artifact.task, ClassTask):
        names = artifact.task.class_names
        more = f", … ({len(names)} classes)" if len(names) > _MANY else ""
        classes = f"\n\nClasses: {', '.join(names[:_MANY])}{more}."
    return (
        f"{base_sentence(model)} It was fine-tuned with finetune_jax under the scheme `{scheme}`, "
        f"and is stored as {_stored(model, name)}. {known}{classes}"
    )


def _scores(model: Model) -> str:
    rows = []
    for split, scores in model.artifact.card.get("scores", {}).items():
        rows += [(split, *row) for row in _score_rows(scores)]
    if not rows:
        return "Not scored."
    return _table(("split", "score", "value [95 % interval]", "n"), rows)


def _score_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    count = scores.get("n_scored", scores.get("n"))
    for score, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if score.endswith(("_low", "_high")) or score in ("n_scored", "n"):
            continue
        shown = with_interval(score, value, scores.get(f"{score}_low"), scores.get(f"{score}_high"))
        yield named(score).name, shown, f"{count:,}" if isinstance(count, int) else "–"


def _further(evaluation: Mapping[str, Any]) -> str:
    """Calibration, corruptions, shifted test sets and more, as ``evaluate`` printed them."""
    if not evaluation:
        return "Robustness, calibration and shifted test sets: not run."
    rows = [("", *row[:2]) for row in _score_rows(evaluation)]
    for part, values in evaluation.items():
        if isinstance(values, dict) and part not in ("per_class", "against"):
            rows += [(named(part).name, *row) for row in _nested(values)]
    split = evaluation.get("split", "test")
    return f"On the split {split}.\n\n" + _table(("measured", "score", "value"), rows)


def _nested(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _nested(value, f"{key}, ")
        elif key.endswith(("_low", "_high")) or isinstance(value, bool):
            continue
        elif isinstance(value, int | float):
            yield f"{prefix}{named(key).name}", written(key, value)


def _data(model: Model) -> str:
    made_of = model.artifact.card.get("made_of") or model.result.get("made_of") or {}
    data = made_of.get("data", {})
    splits = data.get("splits", {})
    sizes = ", ".join(f"{n:,} {split}" for split, n in splits.items())
    text = data_sentence(model) + (f" Examples: {sizes}." if sizes else "")
    if content := data.get("content"):
        # One digest of all: the digests of a folder are listed by the names of its files.
        text += f" Digest of their content: `{digest(content)}`."
    return f"{text}\n\n{TO_FILL} How the data were collected, and their licence."


def _training(model: Model) -> str:
    result = model.result
    if not result:
        return ""
    rows = [
        ("steps", f"{result['steps']:,}"),
        ("chosen step", f"{result.get('selected_step', result['steps']):,}"),
        ("trained parameters", f"{result['trainable_params']:,} of {result['total_params']:,}"),
        ("training", f"{result['train_flops']:.3g} FLOPs, {result['seconds']:,.0f} s"),
    ]
    optimizer = model.config.get("optimizer", {})
    keys = ("name", "learning_rate", "schedule", "weight_decay")
    rows += [(f"optimizer.{key}", f"`{optimizer[key]}`") for key in keys if key in optimizer]
    rows += [("seed", str(model.config["seed"]))] if "seed" in model.config else []
    return _table(("", ""), [(a, plain_text(b)) for a, b in rows])


def _trained(model: Model) -> str:
    """The scheme as a table, and what the audit found."""
    plan = model.artifact.card["plan"]
    phases = [phase["scheme"] for phase in model.result.get("phases", ())] or [plan["scheme"]]
    text = "".join(f"Phase {i}: `{plain_text(s)}`.\n" for i, s in enumerate(phases, 1)) + "\n"
    groups: dict[str, list[Any]] = {}
    for leaf in plan.get("leaves", ()):
        groups.setdefault(leaf["group"], []).append(leaf)
    rows = []
    for group, leaves in groups.items():
        count = sum(_product(leaf["shape"]) for leaf in leaves)
        rates = sorted({leaf["lr"] for leaf in leaves})
        stages = list(dict.fromkeys(leaf["path"].split("/")[0] for leaf in leaves))
        rate = (
            "–" if group == FROZEN else " to ".join(f"{r:g}" for r in {rates[0]: 0, rates[-1]: 0})
        )
        rows.append((plain_text(group), _run_of(stages), f"{len(leaves)}", f"{count:,}", rate))
    header = ("group", "stages", "leaves", "parameters", "rate ×")
    text += (_table(header, rows) + "\n\n") if rows else ""
    if tracked := plan.get("tracked"):
        text += f"BatchNorm statistics followed the training data in {_run_of(tracked)}. "
    audit = model.result.get("audit")
    if audit:
        text += (
            f"Audit at the end of the run: {audit['frozen_leaves']} frozen leaves and "
            f"{audit['frozen_statistics']} frozen statistics are bit-identical to the base, "
            f"{audit['moved_leaves']} trained leaves have moved, and "
            f"{audit['unmoved_leaves']} have not."
        )
    else:
        text += f"{len(changed_leaves(model))} leaves of the base may differ from it."
    return text


def _agreement(name: str, found: Mapping[str, Any]) -> str:
    answers = found.get("argmax_agreement")
    share = "" if answers is None else f"{answers:.2%} of the answers are the same, and "
    return (
        f"On {found['examples']:,} examples, in batches of "
        f"{', '.join(map(str, found['batch_sizes']))}: {share}an output differs by "
        f"{found['max_abs_difference']:.2g} at most (`agreement.json`, format {name})."
    )


def _versions(model: Model) -> str:
    made_of = model.artifact.card.get("made_of") or model.result.get("made_of") or {}
    versions = made_of.get("versions", {})
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def _run_of(stages: Sequence[str]) -> str:
    """Stages in few words: the first and the last of many."""
    if len(stages) <= 4:
        return ", ".join(stages)
    return f"{stages[0]} … {stages[-1]} ({len(stages)})"


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
