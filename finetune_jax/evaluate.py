"""Scores a run's artifact, or a pretrained weight file as it is, on a split: every example once.

  python -m finetune_jax.evaluate --workdir=DIR [--split=test]
  python -m finetune_jax.evaluate --config=configs/eval_cifar10.py --config.pretrained.path=FILE

Prints one JSON object: the task's scores, with the 95 % interval of its metric, and n_scored; null
where a score is undefined. With more flags, more:

  --temperature --selective   temperature scaling fitted on validation; risk against coverage
  --save_predictions=FILE.npz --against=RUN_OR_FILE       paired tests on the same examples
  --corruptions=all --severity=all --shifts=cifar10_1     other test sets, and what is not run
  --drift --knn --few_shot=1,5,10                         how far features moved, what they hold
  --report=FILE.html          all of it on one page
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import plain

if TYPE_CHECKING:
    from finetune_jax.evaluation.predictions import Predictions
    from finetune_jax.evaluation.subject import Subject

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test, as in the config.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Overrides the run's data.data_dir.")
_BASE = flags.DEFINE_string("base", "", "Weight file the run started from, if it is not there.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Overrides eval.batch_size.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_bool("temperature", False, "Fit temperature scaling on validation.")
_SELECTIVE = flags.DEFINE_bool("selective", False, "Risk at several coverages.")
_SAVE = flags.DEFINE_string("save_predictions", "", "File.npz for what was observed per example.")
_AGAINST = flags.DEFINE_string("against", "", "Another run, or its predictions, for paired tests.")
_CORRUPTIONS = flags.DEFINE_string("corruptions", "", "all, or names joined by commas.")
_SEVERITY = flags.DEFINE_string("severity", "all", "1 to 5, several joined by commas, or all.")
_SHIFTS = flags.DEFINE_string("shifts", "", "Shifted test sets, joined by commas, or all.")
_LINE = flags.DEFINE_string(
    "robustness_line", "", "JSON file with the fit of effective robustness."
)
_DRIFT = flags.DEFINE_bool("drift", False, "Distance of features to the base's.")
_KNN = flags.DEFINE_bool("knn", False, "Probe: 20 nearest neighbours in the training split.")
_FEW_SHOT = flags.DEFINE_string("few_shot", "", "Probe: examples per class, such as 1,5,10.")
_REPORT = flags.DEFINE_string("report", "", "File.html for a page of it all; needs --workdir.")


def _probes() -> str:
    wanted = ["knn"] if _KNN.value else []
    wanted += [f"few_shot({number})" for number in _FEW_SHOT.value.split(",") if number]
    return " + ".join(wanted)


def _check_flags(config: Any) -> None:
    """Raises UserError for what can be known to be wrong before anything is loaded."""
    from finetune_jax.evaluation import corrupted, probes, shifts
    from finetune_jax.evaluation.subject import require_split

    require_split(config, _SPLIT.value)
    if _TEMPERATURE.value:
        require_split(config, "validation")
    probes.parse_probes(_probes())
    shifts.parse_shifts(_SHIFTS.value)
    if _LINE.value:
        shifts.read_lines(Path(_LINE.value))
    corrupted.parse_corruptions(_CORRUPTIONS.value)
    corrupted.parse_severities(_SEVERITY.value)
    if _REPORT.value and not (Path(_WORKDIR.value) / "result.json").is_file():
        raise UserError(f"--report: {_WORKDIR.value} is no finished run, result.json is missing")
    if _AGAINST.value and not Path(_AGAINST.value).exists():
        raise UserError(f"--against={_AGAINST.value}: no such run or file")
    for flag, path in (("save_predictions", _SAVE.value), ("report", _REPORT.value)):
        if path and not Path(path).absolute().parent.is_dir():
            raise UserError(f"--{flag}={path}: the folder {Path(path).parent} does not exist")
        if path and Path(path).is_dir():
            raise UserError(f"--{flag}={path}: expected a file, found a folder")


def extras(subject: Subject, split: str, predictions: Predictions) -> dict[str, Any]:
    """What the flags ask for beside the task's scores."""
    from finetune_jax.evaluation import confidence, drift, probes

    task, observed, found = subject.task, predictions.observed, {}
    if _TEMPERATURE.value:
        validation = observed if split == "validation" else subject.observe("validation")
        found["temperature_scaling"] = confidence.temperature_scores(task, validation, observed)
    if _SELECTIVE.value:
        found["selective"] = confidence.selective_scores(task, observed)
    if _AGAINST.value:
        from finetune_jax.evaluation.against import compare

        found["against"] = {"other": _AGAINST.value, **compare(predictions, _other(split))}
    chosen = probes.parse_probes(_probes())
    if chosen:
        train = subject.features("train")
        found["probes"] = probes.probe_scores(chosen, train, subject.features(split))
    if _DRIFT.value:
        base = drift.load_base(subject, _BASE.value)
        found["drift"] = drift.feature_drift(subject, base, split)
    if _CORRUPTIONS.value:
        from finetune_jax.evaluation.corrupted import corrupted_scores

        found["corruptions"] = corrupted_scores(subject, split, _CORRUPTIONS.value, _SEVERITY.value)
    if _SHIFTS.value:
        from finetune_jax.evaluation.shifts import shifted_scores

        found["shifts"] = shifted_scores(subject, observed, _SHIFTS.value, _LINE.value)
    return found


def _other(split: str) -> Predictions:
    from finetune_jax.evaluation.predictions import load_predictions, predict_split
    from finetune_jax.evaluation.subject import open_run

    path = Path(_AGAINST.value)
    if not path.is_dir():
        return load_predictions(path)
    size = _BATCH_SIZE.value or 0
    return predict_split(open_run(path, data_dir=_DATA_DIR.value, batch_size=size), split)


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (_WORKDIR.value is None) == (_CONFIG.value is None):
        raise UserError("give either --workdir (a finished run) or --config (a weight file)")
    if _REPORT.value and _WORKDIR.value is None:
        raise UserError("--report: a page tells of a run; expected --workdir, found --config")
    from finetune_jax.evaluation import subject as subjects
    from finetune_jax.evaluation.predictions import predict_split, save_predictions

    told = {"data_dir": _DATA_DIR.value, "batch_size": _BATCH_SIZE.value or 0}
    if _WORKDIR.value is None:
        config = _CONFIG.value
        _check_flags(config)
        subjects.override(config, **told)
        subject = subjects.open_subject(config)
    else:
        workdir = Path(_WORKDIR.value)
        _check_flags(subjects.read_config(workdir))
        subject = subjects.open_run(workdir, base=_BASE.value, **told)
    predictions = predict_split(subject, _SPLIT.value)
    found = {"split": _SPLIT.value, **subject.scores(predictions.observed)}
    found |= extras(subject, _SPLIT.value, predictions)
    if _SAVE.value:
        save_predictions(Path(_SAVE.value), predictions)
    if _REPORT.value:
        from finetune_jax.reporting.page import write_report

        write_report(
            Path(_REPORT.value), Path(_WORKDIR.value), subject, predictions, found, _BASE.value
        )
    print(json.dumps(plain(found), indent=1))


if __name__ == "__main__":
    cli.run(main)
