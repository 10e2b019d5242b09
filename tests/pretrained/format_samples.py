"""One small file of every format with the same arrays, written without this project's readers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from safetensors.numpy import save_file
from torch_writer import tensor, write_legacy, write_zip

Arrays = dict[str, np.ndarray]

ARRAYS: Arrays = {
    "params/kernel": np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2),
    "params/half": np.linspace(-1, 1, 5).astype(np.float16),
    "params/brain": np.linspace(-3, 3, 6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "params/scalar": np.array(0.1, np.float64),
    "count": np.array([2**40, -1]),
    "mask": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float32),
}


def npy(array: np.ndarray) -> bytes:
    """A ``.npy`` file; bfloat16 in the form of NumPy, without a type."""
    import io

    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def write_npz(path: Path, arrays: Arrays = ARRAYS, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    return path


def write_safetensors(path: Path, arrays: Arrays = ARRAYS) -> Path:
    save_file(arrays, path, metadata={"format": "pt"})
    return path


def write_sharded(folder: Path, suffix: str = ".safetensors", arrays: Arrays = ARRAYS) -> Path:
    """Two shards and their index, in a new folder; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    writer = write_safetensors if suffix == ".safetensors" else write_torch_zip
    names = list(arrays)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        shard = f"{stem}-0000{number}-of-00002{suffix}"
        writer(folder / shard, {name: arrays[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 99}, "weight_map": weight_map}))
    return index


def write_torch_zip(path: Path, arrays: Arrays = ARRAYS) -> Path:
    write_zip(path, {"model": {n: tensor(str(i), a) for i, (n, a) in enumerate(arrays.items())}})
    return path


def write_torch_legacy(path: Path, arrays: Arrays = ARRAYS) -> Path:
    write_legacy(path, {n: tensor(str(i), a) for i, (n, a) in enumerate(arrays.items())})
    return path


def nested(arrays: Arrays) -> dict[str, Any]:
    """Nested dicts of '/'-joined names."""
    out: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return out


def flax_extension(value: Any) -> Any:
    """Packs an array in the form of flax.serialization."""
    if isinstance(value, np.ndarray):
        triple = (value.shape, value.dtype.name, value.tobytes())
        return msgpack.ExtType(1, msgpack.packb(triple, use_bin_type=True))
    if isinstance(value, complex):
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
    raise TypeError(type(value))


def write_msgpack(path: Path, arrays: Arrays = ARRAYS) -> Path:
    path.write_bytes(msgpack.packb(nested(arrays), default=flax_extension))
    return path


def write_keras_h5(path: Path, arrays: Arrays = ARRAYS) -> Path:
    """The old layout: a group per layer; the first part of each name is the layer."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in arrays]
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {}})
        for name, array in arrays.items():
            layer, _, variable = name.partition("/")
            group = file.require_group(layer)
            group[f"{layer}/{variable or 'value'}:0"] = array
    return path


def keras_h5_arrays() -> Arrays:
    return {name if "/" in name else f"{name}/value": array for name, array in ARRAYS.items()}


KERAS_ARRAYS: Arrays = {
    "block1_conv1/kernel": np.arange(36, dtype=np.float32).reshape(3, 3, 2, 2),
    "block1_conv1/bias": np.array([1, 2], np.float32),
    "norm/beta": np.array([3, 4], np.float32),
    "norm/moving_mean": np.array([5, 6], np.float32),
    "norm/moving_variance": np.array([7, 8], np.float32),
    "thin/depthwise_kernel": np.arange(18, dtype=np.float32).reshape(3, 3, 2, 1),
    "inner/out/kernel": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
}
KERAS_GROUPS = {
    "layers/conv2d": ("block1_conv1", ("block1_conv1/kernel", "block1_conv1/bias")),
    "layers/batch_normalization": (
        "norm",
        ("norm/beta", "norm/moving_mean", "norm/moving_variance"),
    ),
    "layers/depthwise_conv2d": ("thin", ("thin/depthwise_kernel",)),
    "layers/sequential": ("inner", ()),
    "layers/sequential/layers/dense": ("out", ("inner/out/kernel",)),
}


def _layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


KERAS_CONFIG = _layer(
    "Functional",
    "model",
    layers=[
        _layer("Conv2D", "block1_conv1"),
        _layer("BatchNormalization", "norm", scale=False, center=True),
        _layer("DepthwiseConv2D", "thin", use_bias=False),
        _layer(
            "Sequential",
            "inner",
            layers=[_layer("InputLayer", "in"), _layer("Dense", "out", use_bias=False)],
        ),
    ],
)


def write_weights_h5(path: Path, named: bool = True) -> Path:
    """Keras 3: numbered variables; with `named`, the names of layers are attributes."""
    import h5py

    with h5py.File(path, "w") as file:
        for group, (name, variables) in KERAS_GROUPS.items():
            place = file.create_group(f"{group}/vars")
            if named:
                place.attrs["name"] = name
            for number, variable in enumerate(variables):
                place[str(number)] = KERAS_ARRAYS[variable]
        file["optimizer/vars/0"] = np.zeros(2, np.float32)
    return path


def write_keras(path: Path, named: bool = True, config: Any = KERAS_CONFIG) -> Path:
    inner = write_weights_h5(path.with_name(f"{path.stem}.inner.weights.h5"), named)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.11.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.write(inner, "model.weights.h5")
    inner.unlink()
    return path


# Orbax does not save arrays without values.
ORBAX_ARRAYS: Arrays = {name: array for name, array in ARRAYS.items() if array.size}


def write_orbax(folder: Path, arrays: Arrays = ORBAX_ARRAYS, **options: Any) -> Path:
    """An Orbax checkpoint; the only sample that its own project writes."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, nested(arrays))
    return folder


# Sample's name -> (writer into a folder, arrays that a reader must give).
SAMPLES: dict[str, tuple[Callable[[Path], Path], Callable[[], Arrays]]] = {
    "stored.npz": (lambda f: write_npz(f / "stored.npz"), lambda: ARRAYS),
    "deflated.npz": (
        lambda f: write_npz(f / "deflated.npz", method=zipfile.ZIP_DEFLATED),
        lambda: ARRAYS,
    ),
    "file.safetensors": (lambda f: write_safetensors(f / "file.safetensors"), lambda: ARRAYS),
    "zip.pth": (lambda f: write_torch_zip(f / "zip.pth"), lambda: ARRAYS),
    "legacy.th": (lambda f: write_torch_legacy(f / "legacy.th"), lambda: ARRAYS),
    "flax.msgpack": (lambda f: write_msgpack(f / "flax.msgpack"), lambda: ARRAYS),
    "sharded.safetensors": (lambda f: write_sharded(f / "safe"), lambda: ARRAYS),
    "sharded.bin": (lambda f: write_sharded(f / "torch", ".bin"), lambda: ARRAYS),
    "legacy.h5": (lambda f: write_keras_h5(f / "legacy.h5"), keras_h5_arrays),
    "numbered.weights.h5": (
        lambda f: write_weights_h5(f / "numbered.weights.h5"),
        lambda: {
            # Nothing in this file says whether the variable is gamma or beta.
            {"norm/beta": "norm/0"}.get(name, name): array
            for name, array in KERAS_ARRAYS.items()
        },
    ),
    "model.keras": (lambda f: write_keras(f / "model.keras"), lambda: KERAS_ARRAYS),
}
NEEDS_H5PY = ("legacy.h5", "numbered.weights.h5", "model.keras")
