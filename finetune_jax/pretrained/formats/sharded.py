"""Weights in several files (shards), with an index that names the file of each tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import (
    MAX_HEADER_BYTES,
    MAX_SHARDS,
    file_errors,
    parse_json,
)
from finetune_jax.pretrained.formats.weights import Weights


def open_sharded(path: Path, open_shard: Callable[[Path], Weights]) -> Weights:
    """Opens ``….safetensors.index.json`` or ``….bin.index.json`` and all shards of the index.

    Args:
      path: the index: ``{"weight_map": {tensor name: file name}, "metadata": {…}}``.
      open_shard: function that opens one shard.

    Raises:
      UserError: the index is damaged, names a file outside its folder, or differs from the content
        of the shards; the differences are listed.
    """
    with ExitStack() as stack:
        with file_errors(path, "index of shards"):
            if path.stat().st_size > MAX_HEADER_BYTES:
                raise UserError(f"it is larger than {MAX_HEADER_BYTES} bytes")
            weight_map = shard_names(path.read_bytes())
            files = sorted({path.parent / name for name in weight_map.values()})
            require_all(files)
            for file in files:
                check_inside(file, path.parent)
        shards: dict[str, Weights] = {}
        for file in files:
            shards[file.name] = stack.enter_context(open_shard(file))
        _compare(path, weight_map, shards)
        opened = stack.pop_all()

    specs = {name: shards[shard].spec(name) for name, shard in weight_map.items()}

    def read(name: str) -> np.ndarray:
        return shards[weight_map[name]].read(name)

    other_entries = tuple(f"{n}: {b}" for n, shard in shards.items() for b in shard.other_entries)
    metadata = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    every = (path, *files)
    return Weights(path, specs, read, opened.close, other_entries, metadata, every)


def shard_names(index: bytes) -> Mapping[str, str]:
    """The `weight_map` of an index: file name of the shard by tensor name.

    Raises UserError, without the name of the index, if a shard is no plain file name.
    """
    weight_map = parse_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("it has no 'weight_map' from tensor names to file names")
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name not in ("", ".", "..")
        if not plain or {"/", "\\", "\0"} & set(name) or len(name) > 255:
            raise UserError(
                f"tensor {tensor!r:.200}: expected the plain name of a file beside the index, "
                f"found {name!r:.200}"
            )
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise UserError(f"it names more than {MAX_SHARDS} shards")
    return weight_map


def is_shard(name: str) -> bool:
    """Whether a file is one of several shards, such as ``model-00001-of-00003.safetensors``."""
    return re.search(r"-\d+-of-\d+\.\w+$", name) is not None


def require_all(files: Sequence[Path]) -> None:
    """Raises UserError with the names of all shards that are missing."""
    # Shards differ in their numbers alone, so the nearest name would be that of another shard.
    missing = [repr(file.name) for file in files if not file.exists()]
    if missing:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        which = f"its files {shown} are" if len(missing) > 1 else f"its file {shown} is"
        raise UserError(
            f"{which} missing ({len(missing)} of {len(files)}). Put all files of the index into "
            "one folder with it; a link must lead to a file that exists"
        )


def check_inside(file: Path, folder: Path) -> None:
    """Raises UserError unless `file`, after following links, is a file of `folder`.

    Links into the ``blobs`` of the same repository in the cache of huggingface_hub are allowed.
    """
    folder = folder.resolve()
    inside = {folder}
    if folder.parent.name == "snapshots":
        inside.add(folder.parent.parent / "blobs")
    target = Path(os.path.realpath(file))
    if target.parent not in inside or not target.is_file():
        raise UserError(f"its file {file.name!r} is no file, or a link that leads out of {folder}")


def _compare(path: Path, weight_map: Mapping[str, str], shards: Mapping[str, Weights]) -> None:
    held = {(name, shard) for shard, opened in shards.items() for name in opened.names()}
    named = set(weight_map.items())
    problems = [
        f"tensor {n!r} is in the index as part of {s}, but not in {s}" for n, s in named - held
    ]
    problems += [
        f"tensor {n!r} is in {s}, but not in the index as part of {s}" for n, s in held - named
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{path}: the index differs from its shards: {'; '.join(sorted(problems)[:8])}{more}. "
            f"Files of two versions may be mixed here: get index and shards again, into a new "
            f"folder"
        )
