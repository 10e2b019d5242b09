"""Opens a weight file or folder of any known format, by its suffix and its content."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.artifact_weights import CARD, open_artifact
from finetune_jax.pretrained.formats.detect import detect
from finetune_jax.pretrained.formats.keras_file import open_keras, open_keras_h5
from finetune_jax.pretrained.formats.limits import file_errors
from finetune_jax.pretrained.formats.msgpack_file import open_msgpack
from finetune_jax.pretrained.formats.npz_file import open_npy_folder, open_npz
from finetune_jax.pretrained.formats.orbax_folder import is_orbax, open_orbax
from finetune_jax.pretrained.formats.safetensors_file import open_safetensors
from finetune_jax.pretrained.formats.sharded import is_shard, open_sharded
from finetune_jax.pretrained.formats.torch_file import PLAIN_PICKLE, open_torch
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.sources import resolve
from finetune_jax.pretrained.sources.hub import REPOSITORY_FILES
from finetune_jax.progress import say_once

# (format in the words of `detect`, opener) by suffix. The longest matching suffix counts.
_OPENERS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    ".safetensors": ("safetensors", open_safetensors),
    ".th": ("torch", open_torch),
    ".pt": ("torch", open_torch),
    ".pth": ("torch", open_torch),
    ".bin": ("torch", open_torch),
    ".ckpt": ("torch", open_torch),  # Lightning
    ".pth.tar": ("torch", open_torch),
    ".tar": ("torch", open_torch),
    ".pyth": ("torch", open_torch),
    ".npz": ("numpy", open_npz),
    ".zip": ("numpy", open_npz),
    ".msgpack": ("msgpack", open_msgpack),
    ".keras": ("keras", open_keras),
    ".h5": ("hdf5", open_keras_h5),
    ".hdf5": ("hdf5", open_keras_h5),
    ".safetensors.index.json": (
        "index",
        functools.partial(open_sharded, open_shard=open_safetensors),
    ),
    ".bin.index.json": ("index", functools.partial(open_sharded, open_shard=open_torch)),
}


def open_weights(path: str | os.PathLike[str], role: str = "") -> Weights:
    """Opens weights without reading their values and without running any code in the file.

    Args:
      path: a file, a folder, or any other source of `finetune_jax.pretrained.sources.resolve`, such
        as ``hf:owner/name``. Files: ``.safetensors``; PyTorch (``.th``, ``.pt``, ``.pth``,
        ``.bin``); NumPy (``.npz``, or a ``.zip`` of ``.npy``); Flax (``.msgpack``); Keras (``.h5``,
        ``.hdf5``, ``.weights.h5``, ``.keras``); or the ``.index.json`` of sharded weights.
        Folders: an artifact, an Orbax checkpoint, the files of a Hugging Face repository, ``.npy``
        files, or a single weight file.
      role: role of the state dict to open in a PyTorch file with several, one of `roles.ROLES`;
        without it, or in other files, the choice is in `Weights.chosen`.

    Raises:
      UserError: the file is missing, empty or damaged, or its content and suffix disagree.
    """
    path = resolve(path) if isinstance(path, str) else Path(path)
    try:
        if path.is_dir():
            return _open_folder(path, role)
        return _open_file(path, role)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)!r:.300}: not a file name: {error}") from error


def _suffix(path: Path) -> str | None:
    fitting = [suffix for suffix in _OPENERS if path.name.endswith(suffix)]
    return max(fitting, key=len, default=None)


def _hub_hint(path: Path) -> str:
    """The end of a message about a missing path that may be a name of the hub; else ""."""
    if path.is_absolute() or len(path.parts) > 2:
        return ""
    name = path if len(path.parts) == 2 else f"OWNER/{path}"
    return f"; a repository of the Hugging Face hub is named by hf:OWNER/NAME, as in hf:{name}"


def _open_file(path: Path, role: str) -> Weights:
    suffix = _suffix(path)
    if suffix is None and not path.exists():
        raise UserError(f"{path}: no such file or folder{_hub_hint(path)}")
    if suffix is None:
        found = detect(path) if path.is_file() else None
        known = ", ".join(_OPENERS)
        hint = f" Its content is {found[1]}; rename or link it." if found and found[0] else ""
        if found and found[0] == "torch" and path.suffix in (".pkl", ".pickle"):
            hint = f" Rename it to .pth if torch.save wrote it. {PLAIN_PICKLE}"
        elif found and not hint:
            hint = f" Its content is {found[1]}."
        raise UserError(
            f"{path}: unknown weight format {path.suffix!r}; expected one of {known}.{hint}"
        )
    if not path.exists():
        folder = path.parent
        files = folder.iterdir() if folder.is_dir() else ()
        present = sorted(p.name for p in files if _suffix(p))
        lacks = "has no weight file" if folder.is_dir() else "does not exist"
        where = nearest(path.name, present) if present else f" The folder {folder} {lacks}."
        if present and is_shard(path.name):  # the nearest name is that of another shard
            where = f" The folder has {', '.join(present[:20])}."
        if folder.is_dir() and (folder / f"{path.name}.index").is_file():
            where = (
                " It is the prefix of a TensorFlow checkpoint, which is not read: save the model "
                "as .h5, .keras or .npz."
            )
        raise UserError(f"{path}: no such weight file.{where}")
    if not path.is_file():
        raise UserError(f"{path}: expected a weight file, found a device")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the weight file is empty (0 bytes)")
    kind, opener = _OPENERS[suffix]
    found = detect(path)
    if found and found[0] != kind:
        raise UserError(
            f"{path}: not a {suffix} file, in spite of its suffix; its content is {found[1]}"
        )
    return open_torch(path, role) if opener is open_torch else opener(path)


_ADAPTER = "adapter_model.safetensors"


def _open_folder(folder: Path, role: str) -> Weights:
    for place in (folder, folder / "artifact"):
        if (place / CARD).is_file():
            return open_artifact(place)
    if is_orbax(folder):
        return open_orbax(folder)
    for name in REPOSITORY_FILES:
        if (folder / name).is_file():
            if (folder / _ADAPTER).is_file():
                say_once(
                    f"{folder}: {name} is read, and the adapter of peft beside it ({_ADAPTER}) is "
                    f"not applied; merge it into its base there, with merge_and_unload()"
                )
            return _open_file(folder / name, role)
    indices = sorted(p for p in folder.iterdir() if p.name.endswith(".index.json"))
    if len(indices) == 1:
        return _open_file(indices[0], role)
    if any(p.suffix == ".npy" for p in folder.iterdir()):
        with file_errors(folder, "folder of NumPy arrays"):
            return open_npy_folder(folder)
    files = sorted(p.name for p in folder.iterdir() if _suffix(p))
    if len(files) == 1 and not is_shard(files[0]):
        return _open_file(folder / files[0], role)
    if files and all(map(is_shard, files)):
        raise UserError(
            f"{folder}: its weight files are shards ({', '.join(files[:20])}), and the index that "
            "names the shard of each tensor (….index.json) is missing; put it beside them"
        )
    if any(p.suffix == ".distcp" for p in folder.iterdir()):
        raise UserError(
            f"{folder}: a distributed checkpoint of torch (.distcp), which is not read; convert it "
            "with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
    if (folder / "saved_model.pb").is_file():
        raise UserError(
            f"{folder}: a SavedModel of TensorFlow, which is not read; load it there, and save the "
            f"model as .h5, .keras or .npz"
        )
    if snapshots := sorted((folder / "snapshots").glob("*/")):
        main = folder / "refs" / "main"
        wanted = folder / "snapshots" / main.read_text().strip() if main.is_file() else None
        one = wanted if wanted in snapshots else snapshots[-1]
        raise UserError(
            f"{folder}: the cache of a repository of the Hugging Face hub; give the folder of one "
            f"revision in it: {one}"
        )
    found = (
        f"name one of its weight files: {', '.join(files[:20])}"
        if files
        else "found no weight file"
    )
    raise UserError(
        f"{folder}: this folder is no artifact, no Orbax checkpoint and no repository of weights "
        f"({', '.join(REPOSITORY_FILES)}); {found}"
    )
