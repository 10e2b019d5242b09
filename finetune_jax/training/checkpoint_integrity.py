"""Whether a checkpoint still holds what was saved: the checksums in it, and their verification.

The JSON item ``meta`` of a checkpoint has the dtype, the shape and the CRC-32 of every leaf, and
its own checksum. A checkpoint is verified from its own files, without the config and the model.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL, read_json, require_seal, seal, write_json
from finetune_jax.pretrained.formats.orbax_folder import leaf_opener

ITEMS = ("state", "meta", "metrics")
"""Folders of the items in a checkpoint; ``metrics`` is there if the run was evaluated."""

# The keys that `meta` had before it had checksums.
_OLD_KEYS = {
    *("phase", "next_step", "base_fingerprint", "snapshot", "audits", "probes", "train_flops"),
    "plan",
}
_LONGEST_REASON = 400


def named_leaves(content: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their keys, joined by '/'; PRNG keys as their raw data."""
    return {
        leaf_name(path): jax.random.key_data(leaf) if is_prng_key(leaf) else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(content)
    }


def leaf_name(path: Any) -> str:
    """Returns the keys of a pytree path, joined by '/', for all kinds of pytree nodes."""
    return "/".join(_keys(path))


def is_prng_key(leaf: Any) -> bool:
    """Returns whether a leaf is a typed PRNG key, of which Orbax saves the raw data."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def seal_meta(
    meta: dict[str, Any], content: Any, metrics: dict[str, float] | None
) -> dict[str, Any]:
    """Returns `meta` with the checksums of a checkpoint, for `require_meta`.

    Args:
      meta: JSON object.
      content: pytree of arrays that the checkpoint holds. If an array is sharded over several
        processes, all processes must call this function.
      metrics: scores that Orbax keeps with the checkpoint.
    """
    leaves = named_leaves(content)
    checksums = tree.checksums(leaves, tree.crc32)
    described = {n: [x.dtype.name, list(x.shape), checksums[n]] for n, x in leaves.items()}
    # The object as a reader gets it: JSON turns tuples into lists, and all keys into texts.
    return seal(json.loads(json.dumps({**meta, "metrics": metrics, "leaves": described})))


def require_meta(folder: Path) -> dict[str, Any]:
    """Returns the content of `seal_meta` of a checkpoint; `folder` is the folder of its step.

    Without ``leaves`` in it, the checkpoint is of a version that saved no checksums.

    Raises:
      UserError: the file is missing, damaged, or does not have its own checksum.
    """
    meta = read_json(folder / "meta" / "metadata")
    if SEAL not in meta and set(meta) == _OLD_KEYS:
        return meta
    return require_seal(meta, str(folder / "meta" / "metadata"))


def require_content(content: Any, meta: dict[str, Any], where: str) -> None:
    """Checks restored values against the checksums of their checkpoint.

    Args:
      content: restored pytree of arrays. If an array is sharded over several processes, all
        processes must call this function.
      meta: result of `require_meta`.
      where: name of the checkpoint, for the message.

    Raises:
      UserError: a leaf is missing, superfluous, or does not have its checksum.
    """
    if "leaves" not in meta:
        return
    found = tree.checksums(named_leaves(content), tree.crc32)
    saved = {name: checksum for name, (_, _, checksum) in meta["leaves"].items()}
    wrong = sorted(n for n in saved.keys() | found.keys() if saved.get(n) != found.get(n))
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} restored leaves do not have their checksum: "
            f"{', '.join(wrong[:3])}"
        )


def repair_metrics(folder: Path) -> bool:
    """Writes the file of the scores anew if it differs from those in `meta`; returns whether.

    Orbax reads the scores of all checkpoints, also of those that are not restored.

    Raises:
      UserError: `meta` is damaged.
      OSError: the file cannot be written.
    """
    meta, file = require_meta(folder), folder / "metrics" / "metrics"
    if "leaves" not in meta or not _metrics_differ(folder, meta):
        return False
    shutil.rmtree(file.parent) if file.parent.is_dir() else file.parent.unlink(missing_ok=True)
    if meta["metrics"] is not None:
        file.parent.mkdir()
        write_json(file, meta["metrics"])
    return True


def damage_of(folder: Path, part: int = 0, parts: int = 1) -> str:
    """Returns why a checkpoint cannot be trusted, with the file or the leaf; empty if it is whole.

    Every leaf is read, compared with its checksum, which an older version did not save, and
    searched for NaN and infinity, which an older version may have saved. Several processes can
    share the work: each then reads a part of the leaves. No process waits for another.

    Args:
      folder: folder of the checkpoint's step.
      part: number of the part of the leaves to read, from 0.
      parts: number of parts.
    """
    try:
        meta = require_meta(folder)
        if "leaves" in meta and _metrics_differ(folder, meta):
            return f"{folder / 'metrics' / 'metrics'}: not the scores that meta has"
        # Orbax refuses relative paths.
        state = folder.absolute() / "state"
        return _damage_of_leaves(state, meta.get("leaves"), part, parts)
    except UserError as error:
        return str(error)
    # Orbax and TensorStore raise any exception for a damaged file.
    except Exception as error:  # noqa: BLE001
        return one_line(error)


def one_line(error: Exception) -> str:
    """Returns an exception in one short line."""
    # TensorStore appends its own source lines to a message.
    message = str(error).split(" [tensorstore_spec=")[0].split(" [source locations=")[0]
    text = " ".join(f"{type(error).__name__}: {message}".split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def _metrics_differ(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether the file of the scores does not hold the scores that `meta` has."""
    file = folder / "metrics" / "metrics"
    try:
        return (read_json(file) if file.parent.exists() else None) != meta["metrics"]
    except UserError:
        return True


def _damage_of_leaves(
    folder: Path, leaves: Mapping[str, tuple[str, list[int], str]] | None, part: int, parts: int
) -> str:
    """As `damage_of`, for the item ``state``; without `leaves` there are no checksums."""
    parameters = _parameters(folder)
    if leaves is not None and parameters.keys() != leaves.keys():
        wrong = sorted(parameters.keys() ^ leaves.keys())
        return f"{folder / '_METADATA'}: the leaves differ from those saved: {', '.join(wrong[:3])}"
    opener = leaf_opener(folder, read_json(folder / "_METADATA"))

    def check(name: str) -> str:
        dtype, shape, checksum = leaves[name] if leaves is not None else ("", [], "")
        try:
            store = opener(parameters[name])
            # Before any value is read, so that a damaged shape allocates no memory.
            found = (store.dtype.numpy_dtype.name, list(store.shape))
            if leaves is not None and found != (dtype, shape):
                return f"leaf {name}: expected {dtype}{shape}, found {found[0]}{found[1]}"
            values = np.asarray(store.read().result(), order="C")
        except Exception as error:  # noqa: BLE001
            return f"leaf {name}: {one_line(error)}"
        if leaves is not None and tree.crc32(values) != checksum:
            return f"leaf {name}: the values do not have their checksum"
        bad = tree.first_nonfinite({name: values}) is not None
        return f"leaf {name}: holds NaN or infinity" if bad else ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(check, sorted(parameters)[part::parts])), "")


def _parameters(folder: Path) -> dict[str, str]:
    """Names of the leaves' stores, by leaf name, from the checkpoint's own metadata.

    Orbax reads the metadata, so that whatever would stop it at a restore raises here.
    """
    # A list of leaves and of their stores, which Orbax reads too if it is there.
    for file in sorted((folder / "array_metadatas").iterdir()):
        read_json(file)
    metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(metadata.tree)]
    return {leaf_name(path): ".".join(_keys(path)) for path in paths}


def _keys(path: Any) -> list[str]:
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
