"""Orbax checkpoint folders: the tree is read from ``_METADATA``, and each leaf by TensorStore.

Every leaf is a zarr array, in a separate folder or in an OCDBT database, whose name is the keys of
the leaf joined by '.'. A leaf can therefore be read without the other leaves, without a target tree
and without a sharding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import (
    DTYPES,
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    check_fits,
    file_errors,
    inflated,
    is_optimizer,
    parse_json,
)
from finetune_jax.pretrained.formats.weights import Spec, Weights

TREE = "_METADATA"
STEP = "_CHECKPOINT_METADATA"
_KIND = "Orbax checkpoint"


def is_orbax(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint, a step with items, or a folder of steps."""
    return any((folder / name).is_file() for name in (TREE, STEP)) or bool(_steps(folder))


def open_orbax(folder: Path) -> Weights:
    """Opens a checkpoint of StandardCheckpointer, PyTreeCheckpointer or CheckpointManager.

    Args:
      folder: folder of the tree, or of a step with one tree among its items.

    Raises:
      UserError: the checkpoint is damaged or not finished; the folder has several trees or steps,
        which are listed; or a leaf has no numbers.
    """
    tree = _find_tree(folder)
    with file_errors(tree, _KIND):
        specs_by_param, other_entries, opener = _read_tree(tree)
    opened: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    room = inflated(sum(path.stat().st_size for path in files))
    for name, parameter in specs_by_param.items():
        with file_errors(tree, f"{_KIND}, tensor {name!r:.200}"):
            store = opener(parameter)
            kind = store.dtype.numpy_dtype.name
            if kind not in DTYPES:
                raise UserError(f"it has dtype {kind}; expected a number or bool")
            shape = tuple(int(size) for size in store.shape)
            check_fits(name, shape, DTYPES[kind], room)
            chunk = tuple(int(size) for size in store.chunk_layout.read_chunk.shape or ())
            check_fits(name, chunk, DTYPES[kind], room)
            specs[name], opened[name] = (shape, DTYPES[kind]), store

    def read(name: str) -> np.ndarray:
        with file_errors(tree, f"{_KIND}, tensor {name!r:.200}"):
            return np.asarray(opened[name].read().result(), order="C")

    return Weights(tree, specs, read, opened.clear, other_entries, files=tuple(files))


def _find_tree(folder: Path) -> Path:
    if (folder / TREE).is_file():
        return folder
    if steps := _steps(folder):
        raise UserError(
            f"{folder}: expected one checkpoint, found the steps {', '.join(steps[:20])}; name "
            f"one of them: {folder / steps[-1]}"
        )
    items = sorted(p.name for p in folder.iterdir() if (p / TREE).is_file())
    if len(items) == 1:
        return folder / items[0]
    found = f"the items {', '.join(items)}; name one of them" if items else "none"
    raise UserError(
        f"{folder}: expected an Orbax checkpoint with one tree of arrays, found {found}"
    )


def _steps(folder: Path) -> list[str]:
    steps = (p.name for p in folder.iterdir() if p.is_dir() and (p / STEP).is_file())
    return sorted(steps, key=lambda name: (len(name), name))


def _read_tree(folder: Path) -> tuple[dict[str, str], tuple[str, ...], Any]:
    """Returns (parameter by name, names of other entries, function that opens a parameter)."""
    file = folder / TREE
    if file.stat().st_size > MAX_HEADER_BYTES:
        raise UserError(f"its {TREE} is larger than {MAX_HEADER_BYTES} bytes")
    content = parse_json(file.read_bytes())
    entries = content.get("tree_metadata")
    if not isinstance(entries, dict) or len(entries) > MAX_TENSORS:
        raise UserError(f"its {TREE} has no 'tree_metadata' of at most {MAX_TENSORS} leaves")
    parameters: dict[str, str] = {}
    other_entries: dict[str, None] = {}
    for entry, value in entries.items():
        keys, kind = _entry(entry, value)
        name = "/".join(keys)
        if name in parameters or name in other_entries:
            raise UserError(f"two leaves have the name {name!r:.200}")
        if kind in ("jax.Array", "np.ndarray", "scalar") and not is_optimizer(name):
            parameters[name] = ".".join(keys)
        else:
            other_entries[name] = None
    return parameters, tuple(other_entries), leaf_opener(folder, content)


def leaf_opener(folder: Path, content: dict[str, Any]) -> Callable[[str], Any]:
    """Returns the function that opens the TensorStore of a leaf, without reading its values.

    Args:
      folder: folder of the tree.
      content: content of its ``_METADATA``.

    Returns:
      A function of the keys of a leaf, joined by '.'. It raises UserError for keys or links that
      lead out of the folder.
    """
    driver = "zarr3" if content.get("use_zarr3") is True else "zarr"
    # Older checkpoints do not have this key.
    database = content.get("use_ocdbt", (folder / "manifest.ocdbt").is_file()) is True

    def open_parameter(parameter: str) -> Any:
        import tensorstore

        if ".." in parameter.replace("\\", "/").split("/") or parameter.startswith("/"):
            raise UserError("its keys name a place outside of the folder")
        base = folder.resolve()
        if database:
            store = {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{base}/"},
                "path": f"{parameter}/",
            }
        else:
            if not (base / parameter).resolve().is_relative_to(base):
                raise UserError("its folder is a link that leads out of the checkpoint")
            store = {"driver": "file", "path": f"{base / parameter}/"}
        spec = {"driver": driver, "kvstore": store}
        return tensorstore.open(spec, open=True, read=True).result()

    return open_parameter


def _entry(entry: str, value: Any) -> tuple[list[str], str]:
    """Returns (keys, type of the value) of one leaf in the tree's metadata."""
    keys = value.get("key_metadata") if isinstance(value, dict) else None
    metadata = value.get("value_metadata") if isinstance(value, dict) else None
    if not isinstance(keys, list) or not isinstance(metadata, dict) or len(keys) > MAX_DEPTH:
        raise UserError(f"its {TREE} has a leaf {entry!r:.200} without keys or a type")
    names = [str(key.get("key")) if isinstance(key, dict) else "" for key in keys]
    if not names or not all(names):
        raise UserError(f"its {TREE} has a leaf {entry!r:.200} with an empty key")
    skipped = metadata.get("skip_deserialize") is True
    return names, "" if skipped else str(metadata.get("value_type"))
