"""An artifact without what tells where it was made: the form that leaves the house."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from finetune_jax.artifact import schema
from finetune_jax.artifact.weights import FILE
from finetune_jax.errors import UserError
from finetune_jax.files import seal, write_json
from finetune_jax.new_folder import new_folder, require_new

# Keys of a card about the run and its data, which no prediction reads.
_OF_THE_RUN = ("made_of", "accepted")
_TOKENIZER = "tokenizer.json"

_ABSOLUTE = re.compile(r"(?<![\w.:/])(?:~?/|[A-Za-z]:[\\/])[^\s'\",;]+")
_QUOTED = re.compile(r"(['\"])([^'\"]*[/\\][^'\"]*)\1")


def release(folder: Path, output: Path) -> list[str]:
    """Writes the artifact of a run without the run's paths, data and history.

    What stays is the weights, the plan, the preprocessing, the class names, the scores, and name
    and checksum of the base. Checkpoints, optimizer state, config, metrics and predictions are not
    in an artifact and so not in the result.

    Args:
      folder: the artifact, or a run's folder with ``artifact/`` in it.
      output: the folder to write, new or empty.

    Returns:
      What was left out or shortened, one line each.

    Raises:
      UserError: no artifact there, or an output with content.
    """
    folder = folder / "artifact" if (folder / "artifact").is_dir() else folder
    card = schema.read_card(folder)
    require_new(output)
    if not (folder / FILE).is_file():
        raise UserError(f"{folder / FILE}: missing")
    left_out = [f"{key}: what the run was made of" for key in _OF_THE_RUN if card.get(key)]
    kept = {key: value for key, value in card.items() if key not in _OF_THE_RUN}
    if "run" in kept.get("quantization", {}):
        kept["quantization"] = {k: v for k, v in kept["quantization"].items() if k != "run"}
        left_out.append("quantization.run: the name of a folder")
    shortened: list[str] = []
    kept = _without_paths(kept, shortened)
    with new_folder(output) as new:
        for name in (FILE, _TOKENIZER):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, new / name)
        write_json(new / schema.FILE, seal(kept))
    return left_out + [f"{text!r}: shortened to the name of the file" for text in shortened]


def _without_paths(value: Any, shortened: list[str]) -> Any:
    """A JSON value whose texts have names of files in the place of paths."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item, shortened) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item, shortened) for item in value]
    if not isinstance(value, str):
        return value

    def name_of(path: str) -> str:
        shortened.append(path)
        return PurePath(path.replace("\\", "/")).name

    text = _QUOTED.sub(lambda found: f"{found[1]}{name_of(found[2])}{found[1]}", value)
    return _ABSOLUTE.sub(lambda found: name_of(found[0]), text)
