"""Keras files: ``.h5`` of Keras 1 to 3, ``.weights.h5`` and ``.keras`` of Keras 3.

All three kinds give the same names, see `keras_names`. Only names and classes of layers are read
from the model's JSON. No layers are built from it, because the JSON may contain code (Lambda).
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.hdf5_file import Hdf5File
from finetune_jax.pretrained.formats.keras_names import (
    LayerInfo,
    layers_of,
    named_path,
    variable_names,
)
from finetune_jax.pretrained.formats.limits import file_errors, parse_json
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.formats.zip_archive import ZipArchive

_WEIGHTS = "model.weights.h5"
# Groups of a Keras 3 file without weights of the model.
_BESIDE = {"optimizer", "metrics", "_metrics", "loss_tracker", "_loss_tracker"}
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies"}  # the latter: Keras 2.12 and 2.13
_NUMBERED = re.compile(r"(?:(.*)/)?vars/(\d+)")
_KIND = "HDF5 file of Keras"


def open_keras_h5(path: Path) -> Weights:
    """Opens a ``.h5`` or ``.weights.h5`` file of any version of Keras.

    Other HDF5 files can be opened too; the names of their tensors are the paths of the datasets.

    Raises:
      UserError: the file is damaged, or has links, compressed, virtual or external datasets, or
        datasets that are no numbers.
    """
    _need_h5py(path)
    with file_errors(path, _KIND):
        file = Hdf5File(path)
        try:
            named, other_entries = _names(file, None)
        except BaseException:
            file.close()
            raise
    return _weights(path, file, named, other_entries)


def open_keras(path: Path) -> Weights:
    """Opens a ``.keras`` archive.

    Raises:
      UserError: the archive is damaged or has no member ``model.weights.h5``, or an error of
        `open_keras_h5`.
    """
    _need_h5py(path)
    with file_errors(path, ".keras archive"), contextlib.closing(ZipArchive(path)) as archive:
        if _WEIGHTS not in archive.names():
            raise UserError(
                f"it has no member {_WEIGHTS!r}; found {', '.join(archive.names()[:8])!s:.600}"
            )
        model = parse_json(archive.read("config.json"))
        about = parse_json(archive.read("metadata.json"))
        file = _inner(path, archive)
        try:
            named, other_entries = _names(file, model)
        except BaseException:
            file.close()
            raise
    metadata = {key: str(value) for key, value in about.items()}
    return _weights(path, file, named, other_entries, metadata)


def _inner(path: Path, archive: ZipArchive) -> Hdf5File:
    """Opens the weights of an archive: inside the archive, or in a temporary file if deflated."""
    if place := archive.place(_WEIGHTS):
        return Hdf5File(path, *place)
    with tempfile.NamedTemporaryFile(suffix=".h5") as file:
        file.write(archive.read(_WEIGHTS))
        file.flush()
        return Hdf5File(Path(file.name))  # keeps the file open after its name is removed


def _need_h5py(path: Path) -> None:
    if importlib.util.find_spec("h5py") is None:
        raise UserError(f"{path}: reading it needs h5py; pip install h5py")


def _weights(
    path: Path,
    file: Hdf5File,
    named: Mapping[str, str],
    other_entries: tuple[str, ...],
    metadata: Mapping[str, str] | None = None,
) -> Weights:
    def read(name: str) -> np.ndarray:
        with file_errors(path, f"{_KIND}, tensor {name!r}"):
            return file.read(named[name])

    specs = {name: file.specs[place] for name, place in named.items()}
    return Weights(path, specs, read, file.close, other_entries, metadata)


def _names(file: Hdf5File, model: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns (path of the dataset by name, names of other entries)."""
    top = "model_weights" if "model_weights" in file.attributes else ""
    if {"layer_names", "layer_names0"} & set(file.attributes[top]):
        named, other_entries = _legacy_names(file, top)
    elif any(_NUMBERED.fullmatch(place) for place in file.specs):
        named, other_entries = _numbered_names(file, layers_of(model))
    else:
        named, other_entries = [(place, place) for place in file.specs], []
    counts = Counter(name for name, _ in named)
    # Layers inside a user's class may share a name, but their paths in the file differ.
    unique = {place if counts[name] > 1 else name: place for name, place in named}
    if len(unique) != len(named):
        raise UserError("two of its tensors have the same name")
    return unique, tuple(other_entries)


def _legacy_names(file: Hdf5File, top: str) -> tuple[list[tuple[str, str]], list[str]]:
    config = file.texts.get("", {}).get("model_config")
    kinds: dict[str, str] = {}
    if config is not None:
        infos = layers_of(parse_json(config.encode("utf-8", "surrogatepass")))
        kinds = {info.names: info.kind for info in infos.values()}
    named, other_entries = [], []
    prefix = f"{top}/" if top else ""
    for place in file.specs:
        layer, _, path = place.removeprefix(prefix).partition("/")
        if not place.startswith(prefix) or layer == "optimizer_weights" or not path:
            other_entries.append(place)
            continue
        name = named_path(layer, path)
        # Only in this kind of file does Keras 3 use the name `kernel` for it.
        owner, _, variable = name.rpartition("/")
        if variable == "kernel" and kinds.get(owner, "").startswith("depthwise_conv"):
            name = f"{owner}/depthwise_kernel"
        named.append((name, place))
    return named, other_entries


def _numbered_names(
    file: Hdf5File, layers: Mapping[str, LayerInfo]
) -> tuple[list[tuple[str, str]], list[str]]:
    owners: dict[str, list[str]] = {}
    other_entries = []
    for place in file.specs:
        match = _NUMBERED.fullmatch(place)
        parts = place.split("/")
        if match is None or parts[0] in _BESIDE or "seed_generator" in parts:
            other_entries.append(place)
        else:
            owners.setdefault(match[1] or "", []).append(place)
    named = []
    for owner, places in owners.items():
        key = owner.replace("_layer_checkpoint_dependencies", "layers")
        info = layers.get(key)
        kind = re.sub(r"_\d+$", "", owner.rpartition("/")[2])
        # The group of a wrapped layer or a cell has the name of the attribute that holds it.
        kind, config = (info.kind, info.config) if info else (kind, None)
        variables = variable_names(kind, len(places), config)
        names = _layer_names(file, owner, layers)
        numbers = sorted(int(place.rpartition("/")[2]) for place in places)
        if numbers != list(range(len(places))):
            variables = tuple(place.rpartition("/")[2] for place in places)
        named += [
            ("/".join([*names, variable]), place)
            for variable, place in zip(variables, places, strict=True)
        ]
    return named, other_entries


def _layer_names(file: Hdf5File, owner: str, layers: Mapping[str, LayerInfo]) -> list[str]:
    """The names of the layers around a layer and of the layer, the outermost first."""
    names = []
    parts = owner.split("/") if owner else []
    for end in range(1, len(parts) + 1):
        group = "/".join(parts[:end])
        key = group.replace("_layer_checkpoint_dependencies", "layers")
        name = file.texts.get(f"{group}/vars", {}).get("name")
        if name is None and key in layers:
            name = layers[key].name
        if name is None and parts[end - 1] in _CONTAINERS:
            continue
        names.append(name or parts[end - 1])
    return names
