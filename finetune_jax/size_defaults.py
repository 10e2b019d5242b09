"""A config from data, model, weights and scheme, with defaults for the size of the data.

| key | rule | reference |
|---|---|---|
| train.batch_size | 32; a quarter of the data below 128 examples; 128 images from 20,000 on | Masters and Luschi 2018 (arXiv 1804.07612): 2 to 32 |
| train.epochs, images | 25 below 1,000 examples, 20 below 10,000, else 5 | PyTorch's tutorial (244 images: 25), TensorFlow's (2,000: 10 + 10) |
| train.epochs, texts | 20 below 10,000 examples, else 3 | Mosbach et al. 2021 (arXiv 2006.04884); Devlin et al. 2019 (arXiv 1810.04805): 2 to 4 |
| optimizer | AdamW, decay 0.01, norm of gradients at most 1 | Devlin et al. 2019; Dosovitskiy et al. 2021 (arXiv 2010.11929) |
| optimizer.learning_rate, head or random weights | 1e-2 for a head on images, else 1e-3 | ours: a head on frozen features of digits reaches more in 200 steps than at 1e-3; Keras' default of Adam |
| optimizer.learning_rate, deltas, norms and biases | 5e-4, and 1e-2 with BatchNorm | Hu et al. 2021 (arXiv 2106.09685); ours |
| optimizer.learning_rate, pretrained weights | 1e-3 with BatchNorm, else 5e-5 for images and 2e-5 for texts | fastai's default of Adam; Lian et al. 2022 (arXiv 2210.08823, its scripts); Mosbach et al. 2021 |
| optimizer.warmup_steps | a tenth of all steps | Mosbach et al. 2021 |
| optimizer.schedule | cosine for images, linear for texts | Loshchilov and Hutter 2017 (arXiv 1608.03983); Devlin et al. 2019 |
| data.augment | random_resized_crop + flip where pretrained weights of an image classifier train, random_crop(pad=4) below 64 pixels | PyTorch's tutorial; He et al. 2015 (arXiv 1512.03385) |
| eval.batch_size | 64 | memory of a laptop |
| pretrained.new_head | True, because the classes are new | |

Sizes, mean and std of images, and the number of tokens, are those of the model. A key that the user
sets is never changed. The values of the references are cited from memory and were not checked
against the papers; between the sizes of the references the rules are choices of this package. The
rates of a head, of norms and of the last stage were tried on digits with ResNet-20; the others were
not measured.
"""  # noqa: E501  # a row of the table is a line

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from finetune_jax import config as config_lib
from finetune_jax.data.sources import SOURCES
from finetune_jax.data.text import TextPreprocess
from finetune_jax.doors import DOOR
from finetune_jax.errors import UserError
from finetune_jax.mesh import use_cpu_devices
from finetune_jax.pretrained.sizes.spelled import PUBLISHED, settle_name
from finetune_jax.progress import muted
from finetune_jax.setup import Setup, open_setup

NONE = "none"
"""Weights that stand for random values."""

_TABLES = (".csv", ".tsv")


def config_for(
    data: str,
    model: str,
    weights: str = PUBLISHED,
    scheme: Any = "full",
    overrides: Mapping[str, Any] | None = None,
    *,
    new_head: bool = True,
) -> ml_collections.ConfigDict:
    """A config with the defaults at the top of this module.

    The data is opened for its size and the model is built abstractly; no weight is read.

    Args:
      data: a value of ``data.source``, or the path of a folder of images or of a table.
      model: name of a model, see `finetune_jax.models.spellings`.
      weights: a value of ``pretrained.path``; ``none`` for random values.
      scheme: value of ``scheme``.
      overrides: values by dotted key, which are never changed.
      new_head: whether the head is drawn anew, where the weights have one.

    Raises:
      UserError: something does not exist or does not fit, as `finetune_jax.setup.open_setup`.
    """
    given = dict(overrides or {})
    config = config_lib.default()
    with config.ignore_type():
        config.scheme = scheme
    config.data.source = source_of(data)
    config.model.name = model
    config.pretrained.path = "" if weights == NONE else weights
    config.pretrained.new_head = bool(config.pretrained.path) and new_head
    _update(config, given)
    config = settle_name(config)
    use_cpu_devices(config.mesh.cpu_devices)
    devices = jax.device_count()
    draft = config.copy_and_resolve_references()
    _update(draft, {"train.batch_size": devices * draft.train.accumulate} | given)
    _update(draft, {"eval.batch_size": devices} | given)
    with muted():
        setup = open_setup(draft)
    _update(config, {**_chosen(setup, devices, given), **given})
    config_lib.validate(config)
    return config.lock()


def source_of(data: str) -> str:
    """The value of ``data.source`` for a path, or for a value of it.

    Raises:
      UserError: no such folder, table or source.
    """
    prefix, path = data.partition(":")[0], Path(data).expanduser()
    if prefix in SOURCES or DOOR.match(data):
        return data
    if path.is_dir():
        tables = any(file.suffix in _TABLES for file in path.iterdir())
        images = any(folder.is_dir() for folder in path.iterdir())
        return f"csv:{data}" if tables and not images else f"folder:{data}"
    if path.is_file():  # another kind of file is refused by its content
        return f"csv:{data}"
    kinds = ", ".join(text for _, text in SOURCES.values())
    raise UserError(
        f"--data={data}: expected a folder of images by class, a table (.csv, .tsv), or one of "
        f"{kinds}; there is no such folder or table"
    )


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What decides the rules: what trains, and of which inputs."""

    texts: bool
    trains: str  # head | light | weights | scratch


def _kind(setup: Setup) -> _Kind:
    leaves = [leaf for phase in setup.phases for leaf in phase.plan.leaves if leaf.trains]
    body = [leaf for leaf in leaves if leaf.delta or leaf.stage != "head"]
    whole = any(not leaf.delta and len(leaf.shape) > 1 for leaf in body)
    trains = "weights" if whole else "light" if body else "head"
    if not setup.config.pretrained.path:
        trains = "scratch"
    return _Kind(isinstance(setup.preprocess, TextPreprocess), trains)


def _chosen(setup: Setup, devices: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key for the size of the data; `given` are those of the user."""
    kind, examples = _kind(setup), setup.examples("train")
    batch = 128 if examples >= 20_000 and not kind.texts else 32
    while batch > 4 and 4 * batch > examples:
        batch //= 2
    parts = devices * setup.config.train.accumulate
    batch = -(-batch // parts) * parts
    if kind.texts:
        epochs = 20.0 if examples < 10_000 else 3.0
    else:
        epochs = 25.0 if examples < 1_000 else 20.0 if examples < 10_000 else 5.0
    length = given.get("train.epochs", epochs) * examples / given.get("train.batch_size", batch)
    steps = given.get("train.steps", 0) or length
    normed = bool(setup.abstract.get("batch_stats"))
    rates = {
        "head": 1e-3 if kind.texts else 1e-2,
        "scratch": 1e-3,
        "light": 1e-2 if normed else 5e-4,
        "weights": 1e-3 if normed else 2e-5 if kind.texts else 5e-5,
    }
    return {
        "train.batch_size": batch,
        "train.epochs": epochs,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": rates[kind.trains],
        "optimizer.weight_decay": 0.01,
        "optimizer.clip_norm": 1.0,
        "optimizer.warmup_steps": round(steps / 10),
        "optimizer.schedule": "linear" if kind.texts else "cosine",
        "data.augment": _augment(setup, kind),
        "eval.batch_size": -(-64 // devices) * devices,
    }


def _augment(setup: Setup, kind: _Kind) -> str:
    photographs = not kind.texts and setup.config.task.name == "classification"
    if not photographs or kind.trains not in ("weights", "scratch"):
        return ""
    return "random_crop(pad=4)" if setup.preprocess.size < 64 else "random_resized_crop + flip"


def _update(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(dict(values))
