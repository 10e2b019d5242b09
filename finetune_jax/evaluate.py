"""Scores a run's artifact, or a pretrained weight file, on a split: every example once.

  python -m finetune_jax.evaluate --workdir=DIR [--split=validation]
  python -m finetune_jax.evaluate --config=configs/eval_cifar10.py --config.pretrained.path=FILE

Prints one JSON object: the result in words, the task's scores, with the 95 % interval of its
metric, n_scored, and the scores of each class under per_class; null where a score is undefined. The
result in words is also the last line on a terminal. More flags measure more:

  --temperature --selective   temperature scaling fitted on validation; risk against coverage
  --save_predictions=FILE.npz --against=RUN_OR_FILE       paired tests on the same examples
  --corruptions=all --severity=all --shifts=cifar10_1     other test sets, and what is not run
  --drift --knn --few_shot=1,5,10                         how far features moved, what they hold
  --report=FILE.html          all of it on one page

The command reads the data that the config of the run names. For a run that you have not trained on
this machine, this needs --trust, once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import plain
from finetune_jax.locks import writing
from finetune_jax.progress import say

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from finetune_jax.evaluation.evaluator import Evaluator
    from finetune_jax.evaluation.predictions import Predictions

_CONFIG = cli.define_config()
cli.define_quick()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_SPLIT = flags.DEFINE_string(
    "split", "", "train, validation or test, as in the config; empty: test, or what there is."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Overrides the run's data.data_dir.")
_DATA_SOURCE = flags.DEFINE_string(
    "data_source", "", "Overrides the run's data.source, for data that was moved."
)
_BASE = flags.DEFINE_string("base", "", "The run's weight file, if it was moved.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Overrides eval.batch_size.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_bool("temperature", False, "Fit temperature scaling on validation.")
_SELECTIVE = flags.DEFINE_bool("selective", False, "Risk at several coverages.")
_SAVE = flags.DEFINE_string("save_predictions", "", "File.npz for the outputs of each example.")
_AGAINST = flags.DEFINE_string("against", "", "Another run, or its predictions, for paired tests.")
_CORRUPTIONS = flags.DEFINE_string("corruptions", "", "all, or names joined by commas.")
_SEVERITY = flags.DEFINE_string("severity", "all", "1 to 5, several joined by commas, or all.")
_SHIFTS = flags.DEFINE_string("shifts", "", "Shifted test sets, joined by commas, or all.")
_ROBUSTNESS_LINE = flags.DEFINE_string(
    "robustness_line", "", "JSON file with the fit of effective robustness."
)
_DRIFT = flags.DEFINE_bool("drift", False, "Distance of the features to the features of the base.")
_KNN = flags.DEFINE_bool("knn", False, "Probe: 20 nearest neighbours in the training split.")
_FEW_SHOT = flags.DEFINE_string("few_shot", "", "Probe: examples per class, such as 1,5,10.")
_REPORT = flags.DEFINE_string(
    "report", "", "File.html for a page with all results; needs --workdir."
)
_ALLOW_IMPORTS = cli.define_allow_imports()
_TRUST = cli.define_trust()
_KEY_FILE, _PASSPHRASE_FILE = cli.define_key()


def _probes() -> str:
    wanted = ["knn"] if _KNN.value else []
    wanted += [f"few_shot({number})" for number in _FEW_SHOT.value.split(",") if number]
    return " + ".join(wanted)


def _check_flags(config: ConfigDict) -> None:
    """Raises UserError for flags that are known to be wrong before anything is loaded."""
    from finetune_jax.evaluation import corrupted, shifts
    from finetune_jax.evaluation.evaluator import require_split
    from finetune_jax.metrics import probes

    if _SPLIT.value:
        require_split(config, _SPLIT.value)
    if _TEMPERATURE.value:
        require_split(config, "validation")
    probes.parse_probes(_probes())
    shifts.parse_shifts(_SHIFTS.value)
    if _ROBUSTNESS_LINE.value:
        shifts.read_robustness_lines(Path(_ROBUSTNESS_LINE.value))
    corrupted.parse_corruptions(_CORRUPTIONS.value)
    corrupted.parse_severities(_SEVERITY.value)
    if _REPORT.value and not (Path(_WORKDIR.value or "") / "result.json").is_file():
        raise UserError(f"--report: {_WORKDIR.value} is no finished run, result.json is missing")
    if _AGAINST.value and not Path(_AGAINST.value).exists():
        raise UserError(f"--against={_AGAINST.value}: no such run or file")
    if _SAVE.value and Path(_SAVE.value).suffix != ".npz":
        raise UserError(
            f"--save_predictions={_SAVE.value}: expected a file that ends in .npz, because arrays "
            f"of NumPy are written; `predict --output=FILE.csv` writes a table"
        )
    if _REPORT.value and Path(_REPORT.value).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--report={_REPORT.value}: expected a file that ends in .html, because a page is "
            f"written; browsers print a page as PDF"
        )
    for flag, path in (("save_predictions", _SAVE.value), ("report", _REPORT.value)):
        if path and not Path(path).absolute().parent.is_dir():
            raise UserError(f"--{flag}={path}: the folder {Path(path).parent} does not exist")
        if path and Path(path).is_dir():
            raise UserError(f"--{flag}={path}: expected a file, found a folder")


def _extra_scores(evaluator: Evaluator, split: str, predictions: Predictions) -> dict[str, Any]:
    """The scores that flags ask for, beside the scores of the task."""
    from finetune_jax.evaluation import confidence, corrupted, drift, shifts
    from finetune_jax.evaluation.against import compare
    from finetune_jax.metrics import probes

    task, observed = evaluator.task, predictions.observed
    found: dict[str, Any] = {}
    if _TEMPERATURE.value:
        if split == "validation":
            say(
                "--temperature: fitted and scored on one split, so the scores after it are too good"
            )
        validation = observed if split == "validation" else evaluator.observe("validation")
        found["temperature_scaling"] = confidence.temperature_scores(task, validation, observed)
    if _SELECTIVE.value:
        found["selective"] = confidence.selective_scores(task, observed)
    if _AGAINST.value:
        found["against"] = {"other": _AGAINST.value, **compare(predictions, _other(split))}
    chosen = probes.parse_probes(_probes())
    if chosen:
        train = evaluator.features("train")
        for line in filter(None, (probe.shortfall(train[1]) for probe in chosen)):
            say(line)
        found["probes"] = probes.probe_scores(chosen, train, evaluator.features(split))
    if _DRIFT.value:
        start = drift.load_start(evaluator, _BASE.value)
        found["drift"] = drift.feature_drift(evaluator, start, split)
    if _CORRUPTIONS.value:
        found["corruptions"] = corrupted.corrupted_scores(
            evaluator, split, _CORRUPTIONS.value, _SEVERITY.value
        )
    if _SHIFTS.value:
        found["shifts"] = shifts.shifted_scores(
            evaluator, observed, _SHIFTS.value, _ROBUSTNESS_LINE.value
        )
    return found


def _open(workdir: Path, base: str = "") -> Evaluator:
    from finetune_jax.evaluation.evaluator import open_run

    return open_run(
        workdir,
        base=base,
        data_dir=_DATA_DIR.value,
        data_source=_DATA_SOURCE.value,
        batch_size=_BATCH_SIZE.value or 0,
        allow_imports=_ALLOW_IMPORTS.value,
        trust=_TRUST.value,
    )


def _other(split: str) -> Predictions:
    """The predictions of the model of ``--against``."""
    from finetune_jax.evaluation.predictions import load_predictions, predict_split

    path = Path(_AGAINST.value)
    return predict_split(_open(path), split) if path.is_dir() else load_predictions(path)


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    if (_WORKDIR.value is None) == (_CONFIG.value is None):
        raise UserError("give either --workdir (a finished run) or --config (a weight file)")
    if _REPORT.value and _WORKDIR.value is None:
        raise UserError("--report: a page is about a run; expected --workdir, found --config")
    from finetune_jax.sealing import folder_at

    with writing(*(Path(path) for path in (_SAVE.value, _REPORT.value) if path)):
        if _WORKDIR.value is None:
            _evaluate(None)
            return
        with folder_at(Path(_WORKDIR.value), _KEY_FILE.value, _PASSPHRASE_FILE.value) as workdir:
            _evaluate(workdir)


def _evaluate(workdir: Path | None) -> None:
    from finetune_jax.chosen_config import chosen_config
    from finetune_jax.evaluation.evaluator import (
        best_split,
        open_evaluator,
        override,
        read_config,
    )
    from finetune_jax.evaluation.predictions import predict_split, save_predictions
    from finetune_jax.reporting.sentences import sentences

    if workdir is None:
        config = chosen_config(new_head=False)
        _check_flags(config)
        override(
            config,
            data_dir=_DATA_DIR.value,
            data_source=_DATA_SOURCE.value,
            batch_size=_BATCH_SIZE.value or 0,
        )
        evaluator = open_evaluator(config)
    else:
        _check_flags(read_config(workdir))
        evaluator = _open(workdir, _BASE.value)
    split = _SPLIT.value or best_split(evaluator.config)
    predictions = predict_split(evaluator, split)
    found = {"split": split, **evaluator.scores(predictions.observed)}
    if each := evaluator.task.per_class(predictions.observed):
        found["per_class"] = each
    found |= _extra_scores(evaluator, split, predictions)
    result = " ".join(sentences(found, evaluator.task, predictions.observed))
    if _SAVE.value:
        save_predictions(Path(_SAVE.value), predictions)
    if _REPORT.value and workdir:
        from finetune_jax.reporting.page import write_report

        command = shlex.join(["python", "-m", "finetune_jax.evaluate", *sys.argv[1:]])
        write_report(
            Path(_REPORT.value), workdir, evaluator, predictions, found, command, _BASE.value
        )
    print(json.dumps(plain({"result": result, **found}), indent=1, allow_nan=False))
    say(result)


if __name__ == "__main__":
    cli.run(main)
