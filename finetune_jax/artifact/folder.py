"""The artifact: a folder that is enough to predict anywhere. safetensors and JSON, no code.

``artifact.json`` holds the model's name and size, ordered class names, preprocessing, the plan,
the base's fingerprint and the scores; ``model.safetensors`` the leaves, all of them or only those
that may differ from the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tasks, tree
from finetune_jax.data import preprocess
from finetune_jax.data.batches import Encoder
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.deltas import Adapted, Delta, from_json
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.models import DTYPES, build, initial_variables
from finetune_jax.pretrained import load, open_weights, save_native
from finetune_jax.pretrained.surgery import KINDS
from finetune_jax.tasks import Task

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A fine-tuned model, ready to predict.

    Attributes:
      model: staged module with its deltas.
      variables: ``{"params": …, "batch_stats": …}``.
      task: with ordered class names.
      preprocess: the training run's.
      card: content of ``artifact.json``.
    """

    model: Adapted
    variables: dict[str, Any]
    task: Task
    preprocess: Preprocess
    card: dict[str, Any]

    @property
    def encode(self) -> Encoder:
        """Of a source's example to what a batch has of it: inputs and targets."""
        return Encoder((self.preprocess, self.task))

    def outputs(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The model's outputs of a batch of preprocessed inputs, such as ``image``."""
        forward = jax.jit(lambda v, x: self.model.apply(v, self.preprocess.device(x)))
        return np.asarray(forward(self.variables, batch))

    def predict(self, items: Sequence[str | Path]) -> list[dict[str, Any]]:
        """One dict per item: what was given, by the kind of input, and how the task reads it.

        Args:
          items: image files or texts; a pair of them has a tab between the two.

        Raises:
          UserError: an image that cannot be decoded, before any is predicted.
        """
        inputs = [self.preprocess.host(self.preprocess.read(str(text))) for text in items]
        batch = {name: np.stack([x[name] for x in inputs]) for name in inputs[0]}
        readings = self.task.read(self.outputs(batch))
        return [
            {self.preprocess.kind: str(text), **reading}
            for text, reading in zip(items, readings, strict=True)
        ]


def save_artifact(
    folder: Path,
    *,
    variables: dict[str, Any],
    model: dict[str, Any],
    deltas: Sequence[Delta],
    task: Task,
    preprocess: Preprocess,
    plan: dict[str, Any],
    base: dict[str, Any],
    scores: dict[str, Any],
    contents: str,
    changed: set[str],
) -> None:
    """Writes an artifact.

    Args:
      folder: created when absent.
      variables: whole variables.
      model: arguments of `models.build` under ``name``, ``num_classes``, ``image_size``, ``dtype``,
        ``head``, and ``family``.
      deltas: in place in the model.
      task: what the outputs are.
      preprocess: deterministic part.
      plan: the plan's JSON.
      base: ``file`` and ``sha256`` of the weights it started from, and ``name_map`` where the
        config sets one.
      scores: by split.
      contents: ``all`` or ``delta``.
      changed: leaf paths, with their collection, that may differ from the base.
    """
    if contents == "delta" and not base.get("sha256"):
        raise UserError("artifact.contents=delta needs a pretrained file to be a delta of")
    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(variables).items()}
    kept = flat if contents == "all" else {p: a for p, a in flat.items() if p in changed}
    save_native(folder / "model.safetensors", tree.unflatten(kept), {"format": "finetune_jax"})
    card = {
        "version": _VERSION,
        "model": model,
        "deltas": [delta.to_json() for delta in deltas],
        "task": task.to_json(),
        "preprocess": preprocess.to_json(folder),
        "contents": contents,
        # How the base's leaves are stored, where not as a weight file is loaded.
        "base_dtypes": {
            p: a.dtype.name for p, a in flat.items() if p not in kept and a.dtype != np.float32
        },
        "base": base,
        "fingerprint": tree.fingerprint(variables),
        "scores": scores,
        "plan": plan,
    }
    write_json(folder / "artifact.json", card)


def load_artifact(folder: Path, base_path: str = "") -> Artifact:
    """Reads an artifact; works wherever the folder was moved to.

    Args:
      folder: the artifact, or a run's folder with ``artifact/`` in it.
      base_path: the pretrained weight file, needed for a ``delta`` artifact only.

    Raises:
      UserError: not an artifact, damaged, or a delta without its base.
    """
    if (folder / "artifact").is_dir():
        folder = folder / "artifact"
    if not (folder / "artifact.json").is_file():
        raise UserError(f"{folder}: no artifact here (artifact.json is missing); did the run end?")
    card = read_json(folder / "artifact.json")
    if card.get("version") != _VERSION:
        raise UserError(
            f"{folder}: artifact version {card.get('version')!r}, this code reads {_VERSION}"
        )
    settings = dict(card["model"])
    family = settings.pop("family")
    task = tasks.from_json(card["task"])
    model = task.adapt(build(**settings))
    deltas = tuple(from_json(d) for d in card.get("deltas", ()))
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: missing")
    with open_weights(weights) as file:
        arrays = {name: file.read(name) for name in file.names()}
    size = card["preprocess"]["size"]
    if card["contents"] == "delta":
        if not base_path:
            raise UserError(
                f"{folder} holds only what differs from {card['base']['file']!r}; give that file "
                f"with --base"
            )
        initial = initial_variables(model, size, stages=("head", *model.fresh_stages))
        # A head that is here whole need not be in the base.
        head = {path for path in tree.flatten(initial) if path.split("/")[1] == "head"}
        whole, manifest = load(
            base_path,
            family,
            initial,
            model,
            name_map=card["base"].get("name_map", ""),
            reinitialise_head=head <= arrays.keys(),
            # Whatever surgery the run allowed: the fingerprint below tells whether it is the same.
            resize=KINDS,
        )
        if manifest.sha256 != card["base"]["sha256"]:
            raise UserError(f"{base_path} is not the file this artifact started from")
        below = tree.flatten(whole)
        for path, dtype in card.get("base_dtypes", {}).items():
            below[path] = below[path].astype(DTYPES[dtype])
        arrays = {**below, **arrays}
    expected = tree.flatten(initial_variables(model, size, stages=()))
    base = {p.removeprefix("params/"): x for p, x in expected.items() if p.startswith("params/")}
    for delta in deltas:
        for path, leaf in delta.leaves(base).items():
            expected[f"params/{path}"] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    wrong = [
        f"{path}: expected {tuple(leaf.shape)}, found "
        f"{arrays[path].shape if path in arrays else 'nothing'}"
        for path, leaf in expected.items()
        if path not in arrays or arrays[path].shape != tuple(leaf.shape)
    ]
    if wrong or arrays.keys() - expected.keys():
        extra = [f"{p}: not in the model" for p in sorted(arrays.keys() - expected.keys())]
        raise UserError(f"{weights} does not fit {settings['name']}: {'; '.join(wrong + extra)}")
    nested = tree.unflatten(arrays)
    variables = {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}
    if tree.fingerprint(variables) != card["fingerprint"]:
        raise UserError(f"{weights}: its content is not what artifact.json says; it was changed")
    return Artifact(
        Adapted(model, deltas),
        variables,
        task,
        preprocess.from_json(card["preprocess"], folder),
        card,
    )
