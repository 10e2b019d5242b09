"""The folder that timm, transformers or sentence-transformers opens.

``model.safetensors`` has the tensors under the names of the library, and the files beside it
describe the model, its preprocessing or its tokenizer, and the names of its outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.export.formats import Batch, Model, Outputs
from finetune_jax.export.host import on_prepared
from finetune_jax.export.hub import DENSE, Destination, destination
from finetune_jax.export.hub.destination import family_of
from finetune_jax.files import read_json, write_json, write_text
from finetune_jax.models import GENERIC, StagedModel, build, initial_variables
from finetune_jax.models.options import joined
from finetune_jax.pretrained import load, map_of, open_weights
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors
from finetune_jax.pretrained.names import COUNTER
from finetune_jax.pretrained.sizes import preprocessing, transformers_config
from finetune_jax.quantization import dequantize

MERGES, KEEPS_DELTAS = True, False
FILE = "model.safetensors"

# Tensors of the width of the tokens that a class demands and prediction does not read, by origin.
_DEMANDED = {
    f"transformers_dinov2_with_registers{giant}": "dinov2_with_registers.embeddings.mask_token"
    for giant in ("", "_giant")
}


def require(model: Model) -> None:
    """Raises UserError for a model that no library opens under the chosen names."""
    destination(model)


def write(model: Model, folder: Path) -> None:
    """Writes the weights and the files beside them.

    Raises:
      UserError: the names cannot express a leaf of the model.
    """
    where = destination(model)
    artifact = model.artifact
    variables = {**artifact.variables, "params": dequantize(artifact.variables["params"])}
    leaves = {path: np.asarray(x, np.float32) for path, x in tree.flatten(variables).items()}
    if where.dense or where.prefix:
        head = {p.rsplit("/", 1)[1]: leaves.pop(p) for p in list(leaves) if "/head/" in p}
    if where.dense:
        (folder / DENSE).mkdir()
        tensors = {"linear.weight": head["kernel"].T, "linear.bias": head["bias"]}
        write_safetensors(folder / DENSE / FILE, _contiguous(tensors), {"format": "pt"})
    module = artifact.model.model
    name_map = map_of(family_of(model), where.origin)
    tensors = name_map.write(leaves, module.sizes)
    if COUNTER in name_map.ignore:
        # transformers counts them among the missing tensors; evaluation does not read them.
        layers = [n.removesuffix("running_mean") for n in tensors if n.endswith(".running_mean")]
        tensors |= {f"{layer}num_batches_tracked": np.zeros((), np.int64) for layer in layers}
    if name := _DEMANDED.get(where.origin):
        tensors[name] = np.zeros((1, leaves["params/stem/class_token"].shape[-1]), np.float32)
    tensors = {name.removeprefix(where.prefix): array for name, array in tensors.items()}
    write_safetensors(folder / FILE, _contiguous(tensors), {"format": "pt"})
    for path, content in where.files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        write_json(folder / path, content)
    for path, text in where.texts.items():
        write_text(folder / path, text)


def _contiguous(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, order="C") for name, array in tensors.items()}


def opened(model: Model, folder: Path) -> Outputs:
    """The outputs of the folder, read as a weight file of its library.

    The sizes of the model come from ``config.json`` where our reader of transformers' files knows
    the class, and the preprocessing of images from the library's file.
    """
    where, artifact = destination(model), model.artifact
    values = read_json(folder / "config.json")
    module = _described(model, values)
    if isinstance(artifact.preprocess, ImagePreprocess):
        read = dataclasses.replace(artifact.preprocess, **_preprocessing(where, folder, values))
        artifact = dataclasses.replace(artifact, preprocess=read)
    size = artifact.preprocess.size
    init = initial_variables(module, size, stages=("head",) if where.prefix else ())
    variables, _ = load(
        folder / FILE,
        family_of(model),
        init,
        module,
        name_map=where.origin,
        reinitialise_head=bool(where.prefix),
    )
    if where.prefix:
        head = _dense_head(folder) if where.dense else _identity(module.num_classes)
        variables = {**variables, "params": {**variables["params"], "head": head}}
    apply = jax.jit(module.apply)

    def outputs(batch: Batch) -> np.ndarray:
        return np.asarray(apply(variables, artifact.preprocess.device(batch)))

    return on_prepared(artifact, outputs)


def _dense_head(folder: Path) -> dict[str, np.ndarray]:
    with open_weights(folder / DENSE / FILE) as weights:
        return {"kernel": weights.read("linear.weight").T, "bias": weights.read("linear.bias")}


def _identity(width: int) -> dict[str, np.ndarray]:
    return {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}


def _described(model: Model, values: dict[str, Any]) -> StagedModel:
    """The model that ``config.json`` describes, or the exported model where ours cannot read it."""
    own = model.artifact.model.model
    if values.get("model_type") not in transformers_config.MODEL_TYPES:
        return own
    found = transformers_config.read(values, "config.json")
    options = dict(found.options)
    if hasattr(own, "pooling") and "pooling" not in options:
        options["pooling"] = own.pooling
    if found.model not in GENERIC:
        return own
    return build(joined(found.model, options), own.num_classes)


def _preprocessing(where: Destination, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Fields of `ImagePreprocess` that the files of the folder decide."""
    if where.library == "timm":
        found = preprocessing.from_timm(values["pretrained_cfg"], folder / "config.json")
    elif where.library == "transformers":
        path = folder / "preprocessor_config.json"
        found = preprocessing.from_transformers(read_json(path), path)
    else:
        inputs = values["inputs"]
        found = {key: inputs[key] for key in ("mean", "std", "interpolation", "crop")}
        found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        found["image_size"] = inputs["size"]
    return {"size" if key == "image_size" else key: value for key, value in found.items()}


def library(model: Model) -> str:
    """The library that reads the folder."""
    return destination(model).library


def usage(model: Model) -> str:
    """Code that opens the folder with its library alone."""
    where = destination(model)
    if where.library == "transformers":
        kind = model.artifact.preprocess.kind
        return _PIPELINE.format(kind=kind, example="photo.jpg" if kind == "image" else "a text")
    return _USAGE.get(where.library, _LOAD).format(opener=where.opener)


_PIPELINE = (
    "from transformers import pipeline\n\n"
    "classify = pipeline('{kind}-classification', model=FOLDER)\n"
    "print(classify('{example}'))"
)
_USAGE = {
    "timm": (
        "import timm\nfrom PIL import Image\n\n"
        "model = timm.create_model('local-dir:' + FOLDER, pretrained=True).eval()\n"
        "prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=model))\n"
        "pixels = prepare(Image.open('photo.jpg').convert('RGB'))[None]\n"
        "print(model.pretrained_cfg['label_names'][int(model(pixels).argmax())])"
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer\n\n"
        "model = SentenceTransformer(FOLDER)\n"
        "outputs = model.encode(['a text', 'another text'])"
    ),
}
_LOAD = (
    "from safetensors.numpy import load_file\n\n"
    "tensors = load_file(FOLDER + '/model.safetensors')  # named as in {opener}"
)
