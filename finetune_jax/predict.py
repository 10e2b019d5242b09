"""Predicts images or texts from an artifact alone: no config, no data, no base weights.

  python -m finetune_jax.predict --workdir=DIR IMAGE [IMAGE …] [--json] [--top=5]
  python -m finetune_jax.predict --workdir=DIR FOLDER 'more/**/*.png' TABLE.csv \\
      --output=predictions.csv
  find photos -name '*.jpg' | python -m finetune_jax.predict --workdir=DIR - --output=found.json
  python -m finetune_jax.predict --workdir=DIR TEXT [TEXT …]

DIR is a run's folder or the artifact itself, also after it was moved. A folder stands for all
images below it, a table (.csv, .tsv) for its rows, and - for the lines of standard input. A pair of
texts or of image files is one argument with a tab between the two. Predictions are in the order of
the inputs. Images that cannot be read are listed, and the others are predicted.

Prints class names with probabilities, most probable first, or the values of another task. --json
prints one JSON array, with all values unless --top says how many. --output writes a file instead:
a table for people and pandas, or JSON. Remarks are printed on standard error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.locks import writing
from finetune_jax.tables import shown

if TYPE_CHECKING:
    from finetune_jax.data.sources import Options

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, or its artifact.", required=True)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON array.")
_TOP = flags.DEFINE_integer(
    "top",
    None,
    "Classes per input; by default 3, in a file .csv 5, in JSON all.",
    lower_bound=1,
)
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Items per batch.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "File.csv or file.json for the predictions.")
_COLUMNS = flags.DEFINE_list("columns", [], "Columns of tables with the images or texts.")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image",
    "skip",
    ["skip", "error"],
    "List images that cannot be read and predict the others, or predict none.",
)
_ALLOW_IMPORTS = cli.define_allow_imports()
_KEY_FILE, _PASSPHRASE_FILE = cli.define_key()


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) < 2:
        raise UserError("give at least one image file, folder, table or text")
    from finetune_jax.artifact.prediction_file import require_writable

    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    if output:
        require_writable(output, "--output")
    from finetune_jax.sealing import folder_at

    keys = (_KEY_FILE.value, _PASSPHRASE_FILE.value)
    with writing(*([output] if output else [])), folder_at(Path(_WORKDIR.value), *keys) as workdir:
        _predict(workdir, argv[1:], output)


def _predict(workdir: Path, arguments: Sequence[str], output: Path | None) -> None:
    from finetune_jax.artifact import Artifact
    from finetune_jax.artifact.items import prediction_inputs
    from finetune_jax.artifact.prediction_file import cut, predict_rows, write_predictions
    from finetune_jax.progress import say

    artifact = Artifact.load(workdir, _BASE.value, _ALLOW_IMPORTS.value)
    found = prediction_inputs(
        arguments, artifact.preprocess, _table_options(workdir, arguments), _COLUMNS.value
    )
    table = output is not None and output.suffix.lower() == ".csv"
    default = None if _JSON.value or (output and not table) else 5 if table else 3
    rows = predict_rows(
        artifact,
        found,
        top=_TOP.value or default,
        batch_size=_BATCH_SIZE.value,
        on_bad_image=_ON_BAD_IMAGE.value,
    )
    if output:
        few = [(named, cut(reading, _TOP.value or 5)) for named, reading in rows]
        write_predictions(output, few if table else rows)
        say(f"{len(rows)} predictions written to {output}")
    if _JSON.value:
        results = [{**named, **reading} for named, reading in rows]
        print(json.dumps(results, indent=1, allow_nan=False))
    elif not output:
        for named, reading in rows:
            print(f"{shown(chr(9).join(named.values()))}: {_line(reading)}")


def _table_options(folder: Path, arguments: Sequence[str]) -> Options | None:
    """How the run of the folder read its tables; None for the defaults."""
    from finetune_jax.artifact.items import TABLES
    from finetune_jax.data.sources import options_of
    from finetune_jax.evaluation.evaluator import read_config

    if not any(text.lower().endswith(TABLES) for text in arguments):
        return None
    return options_of(read_config(folder).data) if (folder / "config.json").is_file() else None


def _line(reading: dict[str, Any]) -> str:
    """A prediction as it is printed for people."""
    if "probabilities" in reading:
        top = reading["probabilities"].items()
        return ", ".join(f"{shown(name)} {p:.1%}" for name, p in top)
    return ", ".join(f"{shown(name)} {_short(value)}" for name, value in reading.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    cli.run(main)
