"""Scores a run's artifact, or a pretrained weight file as it is, on a split: every example once.

  python -m finetune_jax.evaluate --workdir=DIR [--split=test]
  python -m finetune_jax.evaluate --config=configs/eval_cifar10.py --config.pretrained.path=FILE

Prints one JSON object: the task's scores, with the 95 % interval of its metric, and n_scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from finetune_jax import cli
from finetune_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from finetune_jax.artifact import Artifact

_SPLITS = ("train", "validation", "test")

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test, as in the config.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Overrides the run's data.data_dir.")
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Overrides eval.batch_size.", lower_bound=1)


def score(config: Any, split: str, artifact: Artifact | None = None) -> dict[str, Any]:
    """Scores an artifact, or the config's pretrained file, on a split of the config's data.

    The devices need not be those it was trained on: all there are share each batch.

    Raises:
      UserError: bad config, unknown split, or weights whose head does not fit the data.
    """
    import jax

    from finetune_jax.config import default
    from finetune_jax.evaluation.scores import evaluate
    from finetune_jax.training.experiment import load_variables, prepare
    from finetune_jax.training.mesh import put_batch, use_cpu_devices
    from finetune_jax.training.step import make_eval_step

    if split not in _SPLITS:
        raise UserError(f"--split: unknown split {split!r}.{nearest(split, _SPLITS)}")
    if not config.data[split]:
        raise UserError(f"--split={split}: the config has no {split} split, data.{split} is empty")
    use_cpu_devices(config.mesh.cpu_devices)
    devices = jax.device_count()
    if config.eval.batch_size % devices:
        raise UserError(
            f"eval.batch_size: {config.eval.batch_size} images do not divide over {devices} "
            f"devices; give a multiple of {devices} with --batch_size"
        )
    # How it trained does not matter any more.
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.scheme = "full"
    config.artifact = default().artifact
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.train.accumulate, config.train.batch_size = 1, devices
    experiment = prepare(config)
    if artifact is not None:
        model, variables = artifact.model, artifact.variables
        task, preprocess = artifact.task, artifact.preprocess
    else:
        model, task, preprocess = experiment.model, experiment.task, experiment.preprocess
        variables, manifest = load_variables(experiment)
        fresh = [r["leaf"] for r in manifest["rows"] if r["decision"] == "reinitialised"]
        if task.start_head(variables["params"]["head"]) is not None:
            fresh = [leaf for leaf in fresh if not leaf.startswith("params/head/")]
        if fresh or not config.pretrained.path:
            raise UserError(
                "there are no trained weights to score: "
                + (f"{', '.join(fresh)} would be random" if fresh else "set pretrained.path")
            )
    return evaluate(
        task,
        jax.jit(make_eval_step(model, task, preprocess.device)),
        variables,
        experiment.source.read(config.data[split]),
        lambda example: {**preprocess.host(example), **task.host(example)},
        batch_size=config.eval.batch_size,
        place=lambda batch: put_batch(batch, experiment.mesh),
        report=True,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (_WORKDIR.value is None) == (_CONFIG.value is None):
        raise UserError("give either --workdir (a finished run) or --config (a weight file)")
    if _WORKDIR.value is None:
        config, artifact = _CONFIG.value, None
    else:
        from finetune_jax import config as config_lib
        from finetune_jax.artifact import load_artifact
        from finetune_jax.files import read_json
        from finetune_jax.training.mesh import use_cpu_devices

        workdir = Path(_WORKDIR.value)
        config = config_lib.from_json(read_json(workdir / "config.json"))
        # Before the artifact: reading it uses a device.
        use_cpu_devices(config.mesh.cpu_devices)
        # The artifact decides; the run's weight file need not be there any more.
        artifact = load_artifact(workdir, _BASE.value)
    if _DATA_DIR.value:
        config.data.data_dir = _DATA_DIR.value
    if _BATCH_SIZE.value:
        config.eval.batch_size = _BATCH_SIZE.value
    print(json.dumps({"split": _SPLIT.value, **score(config, _SPLIT.value, artifact)}, indent=1))


if __name__ == "__main__":
    cli.run(main)
