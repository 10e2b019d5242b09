"""Writes a trained model in a format that others read.

  python -m finetune_jax.export --workdir=runs/a --format=onnx --output=a_onnx
  python -m finetune_jax.export --workdir=runs/a --format=safetensors --output=a_hub
  python -m finetune_jax.export --workdir=runs/a/artifact --format=stablehlo --output=a_hlo PHOTOS

Formats: stablehlo, onnx, safetensors (the folder that timm or transformers opens), orbax, and peft
(an adapter). The exported model is compared with the run's model on real examples: those of the
run's test split, or the images, tables or texts that are given as arguments. The result is in
agreement.json, and a difference beyond rounding ends the export without a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown, size

if TYPE_CHECKING:
    from finetune_jax.artifact import Artifact
    from finetune_jax.data.examples import Examples
    from finetune_jax.export.formats import Format

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, or its artifact.", required=True)
_FORMAT = flags.DEFINE_string("format", None, "The format to write.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)
_NAMES = flags.DEFINE_string(
    "names", "", "For safetensors and peft: the library that opens the folder, such as timm."
)
_MERGE = flags.DEFINE_bool(
    "merge", None, "Whether what a scheme added is merged into the kernels; default: if possible."
)
_SPLIT = flags.DEFINE_enum(
    "split", "", ["", "train", "validation", "test"], "Split to compare on; default: test."
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 1000, "Number of examples to compare on, drawn at random.", lower_bound=1
)
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")
_DATA_SOURCE = flags.DEFINE_string(
    "data_source", "", "Overrides data.source of the run, for data that was moved."
)
_EVALUATION = flags.DEFINE_string(
    "evaluation", "", "For the model card: a file with the JSON that evaluate printed."
)
_ALLOW_IMPORTS = cli.define_allow_imports()
_TRUST = cli.define_trust()
_KEY_FILE, _PASSPHRASE_FILE = cli.define_key()

_NAMED = ("safetensors", "peft")
"""Formats whose tensors have the names of another project."""

_FILES = (".bin", ".ckpt", ".h5", ".keras", ".onnx", ".pb", ".pt", ".pth", ".safetensors")
"""Suffixes of files of weights, which users of other libraries expect to name."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    from finetune_jax.export.formats import format_of

    output, workdir = Path(_OUTPUT.value), Path(_WORKDIR.value)
    format_ = format_of(_FORMAT.value)
    if output.suffix.lower() in _FILES and not output.is_dir():
        raise UserError(
            f"--output={output}: an export is a folder with the weights and what belongs to them; "
            f"expected a folder such as --output={output.with_suffix('')}"
        )
    if _EVALUATION.value and not Path(_EVALUATION.value).is_file():
        raise UserError(f"--evaluation={_EVALUATION.value}: no such file")
    if _NAMES.value and _FORMAT.value not in _NAMED:
        raise UserError(f"--names is for --format={' and --format='.join(_NAMED)}")
    if format_.KEEPS_DELTAS and _MERGE.value:
        raise UserError(f"--format={_FORMAT.value}: the deltas are what is written; leave --merge")
    if format_.MERGES and _MERGE.value is False:
        raise UserError(f"--format={_FORMAT.value}: deltas have no place there; leave --nomerge")
    from finetune_jax.sealing import folder_at

    with folder_at(workdir, _KEY_FILE.value, _PASSPHRASE_FILE.value) as folder:
        _export(folder, argv[1:], format_, output)


def _export(workdir: Path, arguments: Sequence[str], format_: Format, output: Path) -> None:
    from finetune_jax import export as package
    from finetune_jax.export.formats import FORMATS, Model

    artifact, config, examples = _given(workdir, arguments)
    merges = True if format_.MERGES else False if format_.KEEPS_DELTAS else _MERGE.value
    model = Model(
        package.merged(artifact, merges),
        config,
        _NAMES.value,
        _read(workdir / "result.json"),
        _read(Path(_EVALUATION.value)) if _EVALUATION.value else {},
    )
    found = package.export(model, _FORMAT.value, output, examples)
    bytes_ = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{_FORMAT.value}  {shown(output)}: {FORMATS[_FORMAT.value]}, {size(bytes_)}")
    answers = found["argmax_agreement"]
    share = "" if answers is None else f"{answers:.2%} of the answers agree, "
    print(
        f"agreement  {share}an output differs by {found['max_abs_difference']:.2g} at most "
        f"(n={found['examples']:,}, batches of {', '.join(map(str, found['batch_sizes']))})"
    )


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is no such file."""
    from finetune_jax.files import read_json

    return read_json(path) if path.is_file() else {}


def _given(workdir: Path, arguments: Sequence[str]) -> tuple[Artifact, dict[str, Any], Examples]:
    """The artifact, the config of its run, and the examples to compare on."""
    from finetune_jax.artifact import Artifact
    from finetune_jax.artifact.items import prediction_inputs
    from finetune_jax.data.skip import Subset
    from finetune_jax.evaluation.evaluator import best_split, open_run
    from finetune_jax.files import read_json
    from finetune_jax.metrics.probes import sample

    config = workdir / "config.json"
    values = read_json(config) if config.is_file() else {}
    if arguments:
        artifact = Artifact.load(workdir, _BASE.value, _ALLOW_IMPORTS.value)
        items = prediction_inputs(arguments, artifact.preprocess)[: _EXAMPLES.value]
        return artifact, values, _Items(artifact, [one.item for one in items])
    if not values:
        raise UserError(
            f"{workdir} has no config.json, which names the data of a run; give some images, a "
            f"table or texts to compare the models on, after the flags"
        )
    evaluator = open_run(
        workdir,
        base=_BASE.value,
        data_source=_DATA_SOURCE.value,
        allow_imports=_ALLOW_IMPORTS.value,
        trust=_TRUST.value,
    )
    if evaluator.artifact is None:
        raise ValueError("expected the evaluator of a run")
    whole = evaluator.examples(_SPLIT.value or best_split(evaluator.config))
    return evaluator.artifact, values, Subset(whole, sample(len(whole), _EXAMPLES.value))


class _Items:
    """Inputs of `predict` as examples by column."""

    def __init__(self, artifact: Artifact, items: Sequence[Any]) -> None:
        self.artifact = artifact
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.artifact.example(self.items[index])


if __name__ == "__main__":
    cli.run(main)
