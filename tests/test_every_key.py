"""Every key of the config changes a run or its files, or is refused or reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from exported_models import SMALL_VIT, hub_base, made
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from finetune_jax.config import default, keys
from finetune_jax.errors import UserError
from finetune_jax.export.formats import format_of
from finetune_jax.files import read_json
from finetune_jax.models import build, initialise
from finetune_jax.pretrained import save_native
from finetune_jax.setup import Setup, open_setup
from finetune_jax.tasks.classification import Classification
from finetune_jax.training.loop import train
from finetune_jax.unused_keys import unused_keys

AUGMENT = {"data.augment": "random_crop(pad=2)"}
TABLE = {"data.source": "csv:{folder}/table.csv", "data.test": ""}
FOLDER = {"data.source": "folder:{folder}/images", "data.test": ""}
VIT = "experiments.faults.kills:TINY_VIT"
NAMES = {**TABLE, "data.label_kind": "class"}
WORDS = {**TABLE, "data.label_column": "kind"}
ROUGH = {"optimizer.learning_rate": 3.0, "train.steps": 8, "eval.every_epochs": 0.5}
WEIGHTS = {"pretrained.path": "{weights}", "pretrained.new_head": True}
ROLES = ("model", "ema_model")
MASKS = {"data.source": "digits:masks", "task.name": "segmentation"}
LOST = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}

# For each key, a value other than the default, and other keys that are needed for the key to be
# read. `SAME_NUMBERS` has the effect of keys that change no number of a run.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "seed": (1, {}),
    "scheme": ("full", {}),
    "batch_norm": ("track", {}),
    "frozen_dropout": ("train", {"model.name": "vit_tiny_patch16_224", "model.dropout": 0.1}),
    "decay_mask": (".*bias", {"optimizer.weight_decay": 0.1}),
    "model.name": ("resnet20_cifar", {}),
    "model.dtype": ("bfloat16", {}),
    "model.frozen_dtype": ("bfloat16", {}),
    "artifact.quantize": ("int8", {}),
    "model.remat": (True, {}),
    "model.dropout": (0.5, {"model.name": "vit_tiny_patch16_224"}),
    "model.head": ("gap_linear", {"model.name": "vgg11_bn"}),
    "model.pooling": ("gap", {"model.name": "vit(width=24, depth=1, heads=3, patch=4)"}),
    "pretrained.path": ("{weights}", {"pretrained.new_head": True}),
    "pretrained.name_map": ("timm", WEIGHTS),
    "pretrained.adapter": (
        "{folder}/adapter",
        {"pretrained.path": "{folder}/hub/model.safetensors", "model.name": SMALL_VIT},
    ),
    "pretrained.new_head": (True, {"pretrained.path": "{weights}"}),
    "pretrained.head_init": ("zero", WEIGHTS),
    "pretrained.class_names": ("{folder}/names.txt", {**WEIGHTS, "pretrained.head_init": "copy"}),
    "pretrained.check_statistics": (True, WEIGHTS),
    "pretrained.resize": (
        (),
        {
            **{"pretrained.path": "{folder}/vit.safetensors", "pretrained.new_head": True},
            **{"model.name": VIT, "data.image_size": 24},
        },
    ),
    "pretrained.weights": (
        "ema",
        {"pretrained.path": "{folder}/two.safetensors", "pretrained.new_head": True},
    ),
    "pretrained.prefix": ("other.", WEIGHTS),
    "pretrained.ignore": ("params/head/.*", WEIGHTS),
    "task.name": ("ordinal", {}),
    "task.loss": ("focal(gamma=2)", {}),
    "task.neck": (8, MASKS),
    "task.num_classes": (11, {}),
    "task.label_smoothing": (0.1, {}),
    "data.source": ("digits:attributes", {}),
    "data.data_dir": ("/nowhere", {}),
    "data.prepare": (True, {}),
    "data.image_column": ("other", NAMES),
    "data.label_column": ("kind", NAMES),
    "data.label_columns": (("label", "other"), TABLE),
    "data.mask_column": ("image", NAMES),
    "data.label_kind": ("class", TABLE),
    "data.label_sep": ("-", {**WORDS, "data.label_kind": "classes", "task.name": "multilabel"}),
    "data.label_until": ("1", WORDS),
    "data.class_order": (tuple("9876543210"), {}),
    "data.classes": ("{folder}/some.txt", {}),
    "data.split_seed": (1, FOLDER),
    "data.csv.sep": (";", NAMES),
    "data.csv.header": (("image", "kind", "label"), NAMES),
    "data.csv.encoding": ("utf-16", NAMES),
    "data.csv.quoting": (False, {**WORDS, "data.source": "csv:{folder}/quoted.csv"}),
    "data.csv.extra": ("drop", {**NAMES, "data.source": "csv:{folder}/wide.csv"}),
    "data.on_bad_image": (
        "skip",
        {"data.source": "folder:{folder}/bad", "data.test": "", "data.train": "train"},
    ),
    "data.max_pixels": (10, FOLDER),
    "data.workers": (1, {}),
    "data.train": ("train[:48]", {}),
    "data.validation": ("validation[:24]", {}),
    "data.test": ("test[:20]", {}),
    "data.image_size": (24, {}),
    "data.interpolation": ("nearest", {}),
    "data.mean": ((0.1, 0.2, 0.3), {}),
    "data.std": ((0.1, 0.2, 0.3), {}),
    "data.crop": (0.5, {}),
    "data.tokenizer": ("{folder}/names.txt", {}),
    "data.max_tokens": (7, {}),
    "data.text_columns": (("a", "b"), {}),
    "data.augment": ("flip", {}),
    "data.cache_bytes": (0, {}),
    "train.batch_size": (8, {}),
    "train.epochs": (0.5, {"train.steps": 0}),
    "train.steps": (3, {}),
    "train.accumulate": (2, {"scheme": "full", "batch_norm": "track"}),
    "train.on_nan": ("skip", LOST),
    "train.nan_limit": (1, {**LOST, "train.on_nan": "skip", "train.steps": 6}),
    "optimizer.name": ("adamw", {}),
    "optimizer.learning_rate": (0.5, {}),
    "optimizer.momentum": (0.0, {}),
    "optimizer.nesterov": (True, {}),
    "optimizer.b1": (0.1, {"optimizer.name": "adamw"}),
    "optimizer.b2": (0.1, {"optimizer.name": "adamw"}),
    "optimizer.weight_decay": (0.5, {}),
    "optimizer.schedule": ("constant", {}),
    "optimizer.warmup_steps": (2, {}),
    "optimizer.clip_norm": (0.01, {}),
    "optimizer.ema_decay": (0.5, {}),
    "optimizer.sam_rho": (0.5, {}),
    "optimizer.l2_sp": (0.5, WEIGHTS),
    "optimizer.l2_sp_head": (0.5, WEIGHTS),
    "prefix_cache.enabled": (False, {}),
    "prefix_cache.bytes": (1, {}),
    "prefix_cache.dir": ("{folder}/cache", {}),
    "prefix_cache.dir_bytes": (1, {"prefix_cache.dir": "{folder}/cache2"}),
    "prefix_cache.views": (1, {**AUGMENT, "train.steps": 8}),
    "mesh.data": (7, {}),
    "mesh.fsdp": (2, {}),
    "mesh.cpu_devices": (3, {}),
    "eval.every_epochs": (0.5, {}),
    "eval.batch_size": (7, {}),
    "eval.probes": ("knn(3)", {}),
    "checkpoint.every_steps": (1, {}),
    "checkpoint.keep_last": (1, {}),
    "checkpoint.keep_best": (0, {**ROUGH, "checkpoint.keep_last": 1}),
    "checkpoint.metric": ("loss", {**ROUGH, "artifact.select": "best"}),
    "artifact.contents": ("delta", WEIGHTS),
    "artifact.merge": (True, {"scheme": "lora(rank=2)"}),
    "artifact.select": ("best", ROUGH),
    "log.every_steps": (1, {}),
    "log.tensorboard": (True, {}),
}

# Keys that change how fast, or in how much memory, the same numbers are computed.
SAME_NUMBERS = {
    "data.cache_bytes": "decoded images are kept, or decoded again",
    "data.workers": "processes read, or a thread",
    "eval.batch_size": "examples of one call",
    "mesh.cpu_devices": "devices of a CPU",
    "prefix_cache.bytes": "activations are kept, or computed again",
    "prefix_cache.dir_bytes": "activations are kept for the next run",
    "prefix_cache.enabled": "activations are kept, or computed again",
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_the_walk_has_every_key():
    assert set(CHANGES) == set(keys(default()))
    assert set(SAME_NUMBERS) <= set(CHANGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights) -> Path:
    """Data of every kind that the keys read."""
    from PIL import Image

    place = tmp_path_factory.mktemp("keys")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    rows = ["image,label,kind"]
    for i, picture in enumerate(pixels):
        for root in ("images", "bad"):
            path = place / root / f"{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        rows.append(f"images/{i % 2}/{i}.png,{i % 2},{'a-b' if i % 3 else 'a11'}")
    (place / "bad" / "0" / "bad.png").write_bytes(b"x")
    (place / "table.csv").write_text("\n".join(rows) + "\n")
    (place / "wide.csv").write_text("\n".join([rows[0], *(f"{row},x" for row in rows[1:])]) + "\n")
    quoted = [row.replace(",a", ',"a').replace("-b", '-b"').replace("11", '11"') for row in rows]
    (place / "quoted.csv").write_text("\n".join(quoted) + "\n")
    model = build(VIT, 10, image_size=16)
    save_native(place / "vit.safetensors", initialise(model, 16, jax.random.key(7)), {})
    small = made(
        SMALL_VIT, "timm", size=16, scheme="lora(rank=2) + head",
        task=Classification(tuple("0123456789")),
    )  # fmt: skip
    hub_base(small, place / "hub")
    (place / "adapter").mkdir()
    format_of("peft").write(small, place / "adapter")
    raw = load_file(weights)
    two = {f"{role}.{n}": x + (role == "ema_model") for n, x in raw.items() for role in ROLES}
    save_file(two, place / "two.safetensors")
    (place / "names.txt").write_text("\n".join("0123456789") + "\n")
    (place / "some.txt").write_text("\n".join("01234567") + "\n")
    return place


def config_of(changes: dict[str, Any], folder: Path, weights: Path) -> ConfigDict:
    config = default()
    config.scheme, config.model.name = "last_k(1)", "resnet8_cifar"
    config.data.train, config.data.validation = "train[:32]", "validation[:40]"
    config.data.test, config.data.image_size = "test[:24]", 16
    config.train.batch_size = config.eval.batch_size = 16
    config.train.steps, config.log.every_steps, config.log.tensorboard = 4, 2, False
    if any("vit_" in str(value) or "vgg" in str(value) for value in changes.values()):
        config.data.image_size = 32
    filled = {
        key: value.format(folder=folder, weights=weights) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    config.update_from_flattened_dict(filled)
    return config


def plan_of(setup: Setup) -> dict[str, Any]:
    """The facts about a run that are known before its first step."""
    examples, encode = setup.source.read(setup.config.data.train), setup.encode
    some = [{k: np.asarray(v).tolist() for k, v in encode(examples[i]).items()} for i in range(3)]
    return {
        "phases": [phase.to_json() for phase in setup.phases],
        "parts": [
            re.sub(r" at 0x\w+", "", repr(x)) for x in (setup.preprocess, setup.task, setup.model)
        ],
        "source": [setup.source.splits, setup.source.class_names, some],
        "splits": [len(setup.source.read(setup.config.data[s])) if setup.config.data[s] else 0
                   for s in ("train", "validation", "test")],
        "mesh": str(setup.mesh),
    }  # fmt: skip


def traces_of(setup: Setup, workdir: Path, capsys: Any) -> dict[str, Any]:
    """The files of a finished run, without its config and its times."""
    capsys.readouterr()
    result: Any
    try:
        result = train(setup, workdir)
    except UserError as error:
        result = {"error": str(error)}
    metrics = read_lines(workdir / "metrics.jsonl")
    for line in metrics:
        for key in [key for key in line if "second" in key]:
            del line[key]  # times, and examples per second
    artifact = workdir / "artifact" / "artifact.json"
    content = read_json(artifact) if artifact.is_file() else {}
    for key in ("seal", "created", "seconds", "result", "scores"):
        content.pop(key, None)
    told = re.sub(r"[0-9.]+|/.*", "", capsys.readouterr().err)
    return {
        "said": [line for line in told.splitlines() if not line.startswith("step")],
        "files": sorted(
            re.sub(r"tfevents.*|\.[0-9a-f]{8,}.*", "", str(path.relative_to(workdir)))
            for path in workdir.rglob("*")
            if path.parent.name != "d"  # files of arrays have random names
        ),
        "metrics": metrics,
        "artifact": content,
        "selected": result.get("selected_step"),
        "error": result.get("error"),
    }


BASES: dict[str, Any] = {}
"""Traces of the runs that keys are changed in, by the text of their context."""


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_key_acts_or_is_refused_or_is_reported(key, folder, weights, tmp_path, capsys):
    value, context = CHANGES[key]
    text = json.dumps({k: v for k, v in context.items() if k != key})
    config = config_of({**json.loads(text), key: value}, folder, weights)
    try:
        setup = open_setup(config)
        plan = plan_of(setup)
    except UserError as error:
        assert str(error).strip()
        return
    if any(line.startswith(f"{key}=") for line in unused_keys(setup)):
        return
    try:
        base = open_setup(config_of(json.loads(text), folder, weights))
        if plan != plan_of(base):
            return
    except UserError:
        return  # the key makes a config valid
    if text not in BASES:
        BASES[text] = traces_of(base, tmp_path / "base", capsys)
    traces, changed = BASES[text], traces_of(setup, tmp_path / "changed", capsys)
    if key in SAME_NUMBERS:
        assert changed["artifact"] == traces["artifact"]
        return
    assert changed != traces or _cached(config), f"{key} did nothing"


def _cached(config: ConfigDict) -> bool:
    """Whether the folder of the prefix cache was filled."""
    place = config.prefix_cache.dir
    return bool(place) and any(Path(place).rglob("*"))
