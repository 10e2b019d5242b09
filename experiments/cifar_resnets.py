"""Published test errors of the released CIFAR-10 ResNets, scored by `evaluate` without training.

github.com/akamaster/pytorch_resnet_cifar10: 8.27, 7.37, 6.90, 6.61 and 6.32 % for depths 20, 32,
44, 56 and 110 (He et al. 2016, arXiv 1512.03385, report 8.75, 7.51, 7.17, 6.97 and 6.43).

Hazards: the images must be lossless copies (recompressed images raise the error of ResNet-20 to
19 %); the preprocessing uses the mean and standard deviation of ImageNet.

Hardware: 2 CPU cores, minutes.

Command (FINETUNE_JAX_DATA is the folder with resnet_cifar10/; experiments.prepare_cifar10 builds
the data set):
  python -m experiments.cifar_resnets --data_dir=TFDS_DATA_DIR
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.reproduction import Measured, NotRun, Reproduction, Target, record

_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data_dir with cifar10.")

_ERRORS = {20: 8.27, 32: 7.37, 44: 6.90, 56: 6.61, 110: 6.32}

REPRODUCTION = Reproduction(
    name="cifar_resnets",
    paper="akamaster/pytorch_resnet_cifar10; He et al. 2016, arXiv 1512.03385",
    claim="The released CIFAR-10 ResNets have the published test errors, to the hundredth",
    targets=tuple(
        Target(f"ResNet-{depth}", error, "within", 0.005, "% error", "README of the release")
        for depth, error in _ERRORS.items()
    ),
    hardware="2 CPU cores",
    hazards="lossless images only; ImageNet mean and standard deviation",
    command="python -m experiments.cifar_resnets --data_dir=TFDS_DATA_DIR",
    needs="the weight files and CIFAR-10",
    config="configs/eval_cifar10.py",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.ablation.provenance import provenance
    from finetune_jax.cli import load_config
    from finetune_jax.evaluation.evaluator import score
    from finetune_jax.identity import versions

    folder = Path(os.environ.get("FINETUNE_JAX_DATA", "data")) / "resnet_cifar10"
    found: dict[str, Measured | NotRun] = {}
    hashes, began = {}, time.monotonic()
    for depth in _ERRORS:
        files = sorted(folder.glob(f"resnet{depth}-*.th"))
        if not files:
            found[f"ResNet-{depth}"] = NotRun(f"resnet{depth}-*.th")
            continue
        path = f"{REPRODUCTION.config}:{depth}"
        config = load_config(path)
        hashes[f"ResNet-{depth}"] = provenance(path, config, REPRODUCTION.command)["config_hash"]
        config.pretrained.path, config.data.data_dir = str(files[0]), _DATA_DIR.value
        scores = score(config, "test")
        low, high = (100 * (1 - scores[f"accuracy_{end}"]) for end in ("high", "low"))
        note = f"{files[0].name}; Wilson's interval over images"
        error = 100 * (1 - scores["accuracy"])
        found[f"ResNet-{depth}"] = Measured(error, low, high, scores["n_scored"], note=note)
    if not hashes:
        raise SystemExit(f"{REPRODUCTION.name}: not run (needs weight files in {folder})")
    seconds = time.monotonic() - began
    record(
        REPRODUCTION,
        found,
        {"config_hash": hashes, "versions": versions(), "seconds": seconds},
    )


if __name__ == "__main__":
    from finetune_jax.cli import run

    run(main)
