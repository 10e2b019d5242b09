"""Models with random weights to export, without a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import Adapted
from finetune_jax.export.changed import changed_leaves
from finetune_jax.export.formats import Model, format_of
from finetune_jax.models import build, entry_of, initial_variables
from finetune_jax.schemes import resolve
from finetune_jax.tasks import Task
from finetune_jax.tasks.classification import Classification

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat",
         "dog", "ran", "far", "away", "now"]  # fmt: skip
CLASSES = ("ant", "bee", "cat")

SMALL_VIT = "vit(width=32, depth=2, heads=2, patch=8)"
SMALL_BERT = f"bert(width=32, depth=2, heads=2, vocabulary={len(WORDS)}, positions=16)"


def tokenizer() -> str:
    """The content of a ``tokenizer.json`` of BERT's kind with a few words."""
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(WORDS[:4])
    ]  # fmt: skip
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
              {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]  # fmt: skip
    second = [
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ]
    tokens = {t: {"id": t, "ids": [WORDS.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": pieces,
                           "pair": pieces + second, "special_tokens": tokens},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(WORDS)},
                  "unk_token": "[UNK]"},
    })  # fmt: skip


def made(
    name: str,
    names: str = "",
    *,
    size: int = 32,
    scheme: str = "",
    task: Task | None = None,
    crop: float = 0.875,
    seed: int = 0,
    head: str = "",
    abstract: bool = False,
) -> Model:
    """A model of the registry whose leaves are all random, deltas included.

    Args:
      name: name of the model.
      names: as of `Model`.
      size: side of the images, or number of tokens.
      scheme: scheme whose deltas are added; empty for none.
      task: default: three classes.
      crop: as of `ImagePreprocess`.
      seed: seed of the values.
      head: ``model.head``.
      abstract: whether the model has no leaves, for what is decided by its description alone.
    """
    task = task or Classification(CLASSES)
    entry = entry_of(name)
    module = build(name, task.head_size, image_size=size, head=head)
    if abstract:
        variables: dict[str, Any] = {"params": {"head": {"kernel": np.zeros((1, 3))}}}
    else:
        shapes = initial_variables(module, size, stages=())
        variables = tree.unflatten(_drawn(tree.flatten(shapes), seed))
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    deltas: tuple[Any, ...] = ()
    plan_json: dict[str, Any] = {"scheme": "full"}
    if scheme:
        plan = resolve(scheme, module.stages, variables["params"], variables["batch_stats"])
        plan_json = plan.to_json()
        params = plan.add_deltas(variables["params"], jax.random.key(seed))
        before = tree.flatten(variables["params"])
        rng = np.random.default_rng(seed + 1)
        moved = {
            p: x if p in before or p.endswith(("_a0", "_b0"))
            else np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32)
            for p, x in tree.flatten(params).items()
        }  # fmt: skip
        variables, deltas = {**variables, "params": tree.unflatten(moved)}, plan.deltas
    if entry.tokens:
        preprocess: Any = TextPreprocess(tokenizer(), size)
    else:
        preprocess = ImagePreprocess(size, entry.inputs.mean, entry.inputs.std, "bilinear", crop)
    card = {
        "model": {
            "name": name, "family": entry.family, "num_classes": task.head_size,
            "image_size": size, "dtype": "float32", "head": head,
        },
        "base": {"file": None}, "scores": {}, "plan": plan_json,
    }  # fmt: skip
    artifact = Artifact(Adapted(module, deltas), variables, task, preprocess, card)
    return Model(artifact, {}, names)


def hub_base(model: Model, folder: Path) -> None:
    """Writes the base of a model with deltas as a folder of the hub, with other changed leaves."""
    artifact, changed = model.artifact, changed_leaves(model)
    leaves = tree.flatten(artifact.variables["params"])
    added = {p for d in artifact.model.deltas for p in d.leaves(leaves)}
    flat = {
        path: np.asarray(x) * (0.5 if path in changed else 1)
        for path, x in tree.flatten(artifact.variables).items()
        if path.removeprefix("params/") not in added
    }
    nested = tree.unflatten(flat)
    variables = {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}
    bare = dataclasses.replace(artifact, model=Adapted(artifact.model.model), variables=variables)
    folder.mkdir(exist_ok=True)
    format_of("safetensors").write(dataclasses.replace(model, artifact=bare), folder)


def _drawn(leaves: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Values without zeros or ones that would hide a wrong leaf, and of moderate activations."""
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        noise = rng.normal(size=leaf.shape)
        if path.endswith("/var"):
            noise = 0.5 + rng.uniform(size=leaf.shape)
        elif len(leaf.shape) > 1 and path.endswith("kernel"):
            noise *= (leaf.size // leaf.shape[-1]) ** -0.5
        elif path.endswith(("bias", "mean", "embedding", "token", "probe", "tokens")):
            noise *= 0.1
        else:
            noise = 1 + 0.1 * noise
        return noise.astype(np.float32)

    return {path: draw(path, leaf) for path, leaf in leaves.items()}


def examples(model: Model, count: int = 20, side: int = 40) -> list[dict[str, Any]]:
    """Random images of several sizes, or texts of several lengths, as a data source has them."""
    rng = np.random.default_rng(5)
    if model.artifact.preprocess.kind == "text":
        return [{"text": " ".join(rng.choice(WORDS[4:], rng.integers(1, 9)))} for _ in range(count)]
    return [
        {"image": rng.integers(0, 256, (side + i % 3, side + 5, 3), np.uint8)} for i in range(count)
    ]
