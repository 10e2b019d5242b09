"""Turns a finished pre-training run into the shipped weights and their card.

Command:
  python -m finetune_jax.train --config=configs/pretrain_resnet20_cifar10.py --workdir=DIR \\
      --config.data.data_dir=TFDS_DATA_DIR
  python -m experiments.ship_resnet20 --workdir=DIR

Writes ``finetune_jax/weights/resnet20_cifar10.safetensors`` and ``.json`` beside it: config, data,
seed, steps, test accuracy with its interval, SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
from absl import app, flags

from finetune_jax.artifact import load_artifact
from finetune_jax.files import read_json, write_json
from finetune_jax.pretrained import save_native

_WORKDIR = flags.DEFINE_string("workdir", None, "The finished run.", required=True)
_HARDWARE = flags.DEFINE_string("hardware", "2 CPU cores", "What it was trained on.")
_TARGET = Path(__file__).parent.parent / "finetune_jax" / "weights" / "resnet20_cifar10.safetensors"


def main(_: list[str]) -> None:
    """Writes weights and card."""
    workdir = Path(_WORKDIR.value)
    artifact = load_artifact(workdir)
    config, result = read_json(workdir / "config.json"), read_json(workdir / "result.json")
    # Where the data lay on the machine that trained is nobody's business.
    config["data"]["data_dir"] = ""
    _TARGET.parent.mkdir(exist_ok=True)
    save_native(_TARGET, artifact.variables, {"model": "resnet20_cifar", "data": "CIFAR-10"})
    card = {
        "model": "resnet20_cifar",
        "data": "CIFAR-10 (Krizhevsky 2009), 98 % of the training split; test split scored once",
        "class_names": list(artifact.task.class_names),
        "preprocess": artifact.preprocess.to_json(),
        "command": "python -m finetune_jax.train --config=configs/pretrain_resnet20_cifar10.py",
        "config": config,
        "seeds": [config["seed"]],
        "steps_planned": result["steps"],
        "steps_done": result["selected_step"],
        "hardware": _HARDWARE.value,
        "jax": jax.__version__,
        "test": result["test"],
        "sha256": hashlib.sha256(_TARGET.read_bytes()).hexdigest(),
    }
    write_json(_TARGET.with_suffix(".json"), card)
    print(json.dumps({k: card[k] for k in ("test", "steps_done", "sha256")}, indent=1))


if __name__ == "__main__":
    app.run(main)
