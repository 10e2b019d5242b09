"""Campaign: an artifact is damaged or edited, and then opened to predict.

  python -m experiments.faults.artifacts --write

Half of the trials damage a file at random. The others edit a value of ``artifact.json``: another
type, a huge number, a doubled or reversed list, a removed or added key. Half of the edited
artifacts get a new checksum, as an artifact from an unknown source may have. Such an artifact must
be refused, or be a valid artifact whose predictions are finite and have the class names that the
artifact declares.
"""

from __future__ import annotations

import atexit
import copy
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.faults.campaign import TRACEBACK, Trial, damage_one, main, outcome_of
from finetune_jax import tree
from finetune_jax.artifact import Artifact, save_artifact
from finetune_jax.data.preprocess import ImagePreprocess, Preprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import Delta, LoRA
from finetune_jax.files import require_seal, seal
from finetune_jax.models import MODELS, Entry, Inputs, build, initialise
from finetune_jax.models.text_encoder import TextEncoder
from finetune_jax.pretrained import open_weights, save_native
from finetune_jax.tasks import Classification

VALID = "another valid artifact"

_CLASSES = ("ant", "bee", "cat", "dog", "eel")
_WORDS = ("[PAD]", "[UNK]", "the", "cat", "sat")
_MEMORY = 4 * 2**30  # bytes that a trial may allocate beyond those at the start
_BASE = "base.safetensors"


def make_trial(folder: Path) -> Trial:
    """Writes three artifacts: of images, of images as a delta with its base, and of texts.

    Args:
      folder: empty folder.

    Returns:
      The function of a trial.
    """
    texts = functools.partial(
        TextEncoder, width=16, depth=1, heads=2, vocabulary=20, positions=16, pooling="mean"
    )
    MODELS.setdefault("campaign_text", Entry("bert", texts, Inputs(8), tokens=True))
    pixels = ImagePreprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    _save(folder / "all", "resnet20_cifar", pixels, "all")
    _save(folder / "delta", "resnet20_cifar", pixels, "delta")
    _save(folder / "text", "campaign_text", TextPreprocess(_tokenizer(), 8), "all")
    expected = {name: _predictions(folder / name) for name in ("all", "delta", "text")}

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        name = ("all", "delta", "text")[int(rng.integers(3))]
        shutil.rmtree(folder / "trial", ignore_errors=True)
        shutil.copytree(folder / name, folder / "trial")
        sealed = False
        if rng.random() < 0.5:
            done = damage_one(folder / "trial", rng)
        else:
            sealed = rng.random() < 0.5
            done = _edit(folder / "trial" / "artifact.json", rng, sealed)
        found: list[Any] = []

        def run() -> bool:
            found.extend(_predictions(folder / "trial"))
            return found == expected[name]

        try:
            outcome, message = outcome_of(run)
        except MemoryError as error:
            outcome, message = TRACEBACK, f"memory: {error}"
        if sealed and found and found != expected[name] and _is_valid(folder / "trial", found):
            outcome = VALID
        return outcome, f"{name}, {done}: {message}"

    return trial


def _save(folder: Path, name: str, preprocess: Preprocess, contents: str) -> None:
    """Writes an artifact of random weights, and the base of a delta beside them."""
    model = build(name, len(_CLASSES), image_size=preprocess.size)
    variables = initialise(model, preprocess.size, jax.random.key(0))
    deltas: tuple[Delta, ...] = ()
    base: dict[str, Any] = {"file": None, "sha256": None}
    changed: set[str] = set()
    if contents == "delta":
        folder.mkdir(parents=True)
        save_native(folder / _BASE, variables, {})
        with open_weights(folder / _BASE) as weights:
            base = {"file": _BASE, "sha256": weights.sha256()}
        deltas = (LoRA("head", rank=2),)
        variables = _with_deltas(variables, deltas)
        changed = {p for p in tree.flatten(variables) if p.startswith("params/head/")}
    save_artifact(
        folder,
        variables=jax.tree.map(np.asarray, variables),
        model={
            "family": MODELS[name].family, "name": name, "num_classes": len(_CLASSES),
            "image_size": preprocess.size, "dtype": "float32", "head": "",
        },
        deltas=deltas,
        task=Classification(_CLASSES),
        preprocess=preprocess,
        plan={"scheme": "full", "providers": []},
        base=base,
        scores={"test": {"accuracy": 0.5}},
        contents=contents,
        changed=changed,
    )  # fmt: skip


def _with_deltas(variables: dict[str, Any], deltas: Sequence[Delta]) -> dict[str, Any]:
    """The variables with start values of the deltas."""
    flat = tree.flatten(variables["params"])
    for delta in deltas:
        flat = {**flat, **delta.initial(jax.random.key(1), flat)}
    return {**variables, "params": tree.unflatten(flat)}


def _tokenizer() -> str:
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel", "vocab": {w: i for i, w in enumerate(_WORDS)},
                "unk_token": "[UNK]",
            },
        }
    )  # fmt: skip


def _predictions(folder: Path) -> list[dict[str, Any]]:
    base = folder / _BASE
    artifact = Artifact.load(folder, base if base.exists() else "")
    if artifact.preprocess.kind == "text":
        return artifact.predict([{"text": "the cat sat"}, {"text": "cat"}])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    return artifact.predict([{"image": x, "image2": x} for x in pixels])


def _is_valid(folder: Path, found: list[dict[str, Any]]) -> bool:
    """Whether predictions are finite, and of the classes that the artifact declares."""
    task = json.loads((folder / "artifact.json").read_text())["task"]
    numbers = [v for x in found for y in x.values() for v in _numbers(y)]
    named = [set(x["probabilities"]) for x in found if "probabilities" in x]
    return all(map(math.isfinite, numbers)) and all(
        names == set(task.get("class_names", ())) for names in named
    )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [v for x in value.values() for v in _numbers(x)]
    if isinstance(value, list):
        return [v for x in value for v in _numbers(x)]
    return [value] if isinstance(value, int | float) else []


_DEEP = "a value nested too deeply"
_VALUES = (
    None, True, False, 0, 1, -1, 2, 60_000, 10**9, 10**30, -(10**9), 0.5, -0.5, 1e308, 1e-308,
    "multilabel", "ordinal", "regression", "mae", "similarity", "simclr", "text", "image pair",
    "bgr", "nearest", "bfloat16", "delta", "all", "ssf", "sparse", "prompt", "resnet56_cifar",
    "vit_ti16", "focal(gamma=2)", "distill(teacher='x')", "f" * 64, 16, 8, 5,
    "", "x", "a" * 100_000, "\x1b[31m\n", [], [1], [[]], {}, {"a": 1}, math.nan, math.inf, _DEEP,
)  # fmt: skip


def _edit(file: Path, rng: np.random.Generator, sealed: bool) -> str:
    """Edits one value of a card at random, and returns what was done."""
    card = require_seal(json.loads(file.read_text()), "")
    before = copy.deepcopy(card)
    places = list(_places(card, ""))
    while card == before:  # an edit may leave a value as it is
        owner, key, path = places[int(rng.integers(len(places)))]
        what = _change(owner, key, rng)
    broken = any(isinstance(x, float) and not math.isfinite(x) for x in _numbers(card))
    # NaN and deep nesting have no checksum, because they are no content of a card.
    deep = _DEEP in json.dumps(card, allow_nan=True)
    if not sealed:
        card["sha256"] = json.loads(file.read_text())["sha256"]
    elif not broken and not deep:
        card = seal(card)
    text = json.dumps(card).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)
    file.write_text(text)
    return f"{path} {what}{', with its checksum' if sealed else ''}"


def _change(owner: Any, key: Any, rng: np.random.Generator) -> str:
    value = owner[key]
    kind = rng.choice(["value", "list", "remove", "add"], p=[0.6, 0.15, 0.15, 0.1])
    if kind == "list" and isinstance(value, list):
        reverse = rng.random() < 0.5
        owner[key] = value[::-1] if reverse else value * 2
        return "reversed" if reverse else "doubled"
    if kind == "remove":
        del owner[key]
        return "removed"
    if kind == "add" and isinstance(value, dict):
        value["colour"] = 1
        return "gets a key 'colour'"
    owner[key] = copy.deepcopy(_VALUES[int(rng.integers(len(_VALUES)))])
    return f"becomes {owner[key]!r:.40}"


def _places(value: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Yields (owner, key, dotted path) of every value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in items:
        yield value, key, f"{path}{key}"
        if isinstance(member, dict | list):
            yield from _places(member, f"{path}{key}.")


def _limit_memory() -> None:
    """Limits the address space, so that a memory bomb is a `MemoryError`."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _prepared() -> Trial:
    folder = tempfile.mkdtemp(prefix="finetune_jax_artifacts_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    trial = make_trial(Path(folder))
    _limit_memory()
    return trial


if __name__ == "__main__":
    main("artifacts", _prepared, trials=300)
