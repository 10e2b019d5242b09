"""Turns a finished pre-training run into the shipped weights and their card.

Command:
  python -m finetune_jax.train --config=configs/pretrain_resnet20_cifar10.py --workdir=DIR \\
      --config.data.data_dir=TFDS_DATA_DIR
  python -m experiments.ship_resnet20 --workdir=DIR --data_dir=TFDS_DATA_DIR

Writes ``finetune_jax/weights/resnet20_cifar10.safetensors`` and a ``.json`` card beside it with
config, data, seed, steps, SHA-256, and the test accuracy with its interval, as
`finetune_jax.evaluate` computes it for this file with ``configs/eval_cifar10.py:20``. If any step
fails, nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from finetune_jax.artifact import Artifact
from finetune_jax.configs import eval_cifar10, pretrain_resnet20_cifar10
from finetune_jax.evaluation.evaluator import score
from finetune_jax.files import read_json, write_json
from finetune_jax.pretrained import save_native

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the finished run.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Overrides the run's data.data_dir.")
_HARDWARE = flags.DEFINE_string("hardware", "2 CPU cores", "Hardware of the training.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(Path(__file__).parent.parent / "finetune_jax" / "weights" / "resnet20_cifar10.safetensors"),
    "Weight file to write; the card goes beside it.",
)


def ship(workdir: Path, data_dir: str, output: Path, hardware: str) -> dict[str, Any]:
    """Writes weights and card; returns the card."""
    artifact = Artifact.load(workdir)
    config, result = read_json(workdir / "config.json"), read_json(workdir / "result.json")
    # The local path of the data is not published.
    config["data"]["data_dir"] = ""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        weights = Path(folder) / output.name
        save_native(weights, artifact.variables, {"model": "resnet20_cifar", "data": "CIFAR-10"})
        scored = eval_cifar10.get_config("20")
        scored.pretrained.path = str(weights)
        scored.data.data_dir = data_dir
        card = {
            "model": "resnet20_cifar",
            "licence": "Apache-2.0",
            "data": f"CIFAR-10 (Krizhevsky 2009), trained on {config['data']['train']!r}, scored "
            f"on {scored.data.test!r}",
            "class_names": list(artifact.task.class_names),
            "preprocess": artifact.preprocess.to_json(),
            "command": _command(config),
            "config": config,
            "seeds": [config["seed"]],
            "steps_planned": result["steps"],
            "steps_done": result["selected_step"],
            "hardware": hardware,
            "jax": jax.__version__,
            "test": score(scored, "test"),
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        write_json(weights.with_suffix(".json"), card)
        for suffix in (".safetensors", ".json"):
            os.replace(weights.with_suffix(suffix), output.with_suffix(suffix))
    return card


def _command(config: dict[str, Any]) -> str:
    command = "python -m finetune_jax.train --config=configs/pretrain_resnet20_cifar10.py"
    epochs = config["train"]["epochs"]
    default = pretrain_resnet20_cifar10.get_config().train.epochs
    return command if epochs == default else f"{command}:{epochs:g}"


def main(_: list[str]) -> None:
    """Runs the command."""
    values = flags.FLAGS
    card = ship(Path(values.workdir), values.data_dir, Path(_OUTPUT.value), _HARDWARE.value)
    print(json.dumps({k: card[k] for k in ("test", "steps_done", "sha256")}, indent=1))


if __name__ == "__main__":
    app.run(main)
