"""An ONNX graph with its preprocessing: raw images or tokens to the outputs of the task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.extend.core import jaxpr_as_fun

from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.export.description import describe
from finetune_jax.export.formats import Batch, Model, Outputs
from finetune_jax.export.onnx_pixels import resizing
from finetune_jax.files import write_text
from finetune_jax.quantization import dequantize, input_scales

MERGES = False
KEEPS_DELTAS = False
FILE = "model.onnx"
TOKENIZER = "tokenizer.json"

OPSET = 23
"""Version of the operators."""

_LARGEST_FILE = 2**31 - 2**20
"""Bytes of the largest graph in one file; the weights of a larger one lie beside it."""


def require(model: Model) -> None:
    """Checks that the libraries are installed, and that the inputs of layers are not rounded."""
    adapted = model.artifact.model
    if input_scales(model.artifact.variables["params"], adapted.formats):
        raise UserError(
            "--format=onnx: the inputs of layers are rounded to 8 bits (w8a8), which was found to "
            "have other outputs in ONNX; --format=stablehlo holds every model, and weights alone "
            "in few bits (int8, int4, nf4, fp8) are written"
        )
    for library in ("jax2onnx", "onnxruntime"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise UserError(
                f"--format=onnx needs {library} ({error}): pip install 'finetune_jax[onnx]', and "
                f"then pip install --no-deps jax2onnx, whose bounds exclude this version of orbax"
            ) from None


def write(model: Model, folder: Path) -> None:
    """Writes ``model.onnx``, and ``tokenizer.json`` for a model of texts.

    The graph takes what `formats.Batch` describes, images of any size, and any number of rows. Its
    outputs are ``outputs`` and the numbers of the task. It computes in f32, whatever dtype the run
    has; quantized weights are stored as they are, except those of nf4, which are stored in f32.

    Raises:
      UserError: an operation of the model has no form in ONNX.
    """
    import onnx

    preprocess: Any = model.artifact.preprocess
    graph = _converted(model)
    if isinstance(preprocess, ImagePreprocess):
        options = (preprocess.size, preprocess.interpolation, preprocess.crop)
        first = resizing(*options, pairs=len(preprocess.columns) == 2, opset=OPSET)
        first.ir_version = graph.ir_version
        graph = onnx.compose.merge_models(first, graph, io_map=[("square", "pixels")])
    else:
        write_text(folder / TOKENIZER, preprocess.fitted_tokenizer)
    for key, value in describe(model.artifact).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        graph.metadata_props.add(key=key, value=text)
    graph.producer_name = "finetune_jax"
    apart = graph.ByteSize() > _LARGEST_FILE
    onnx.save(graph, folder / FILE, save_as_external_data=apart, location=f"{FILE}.data")


def _converted(model: Model) -> Any:
    """The graph from prepared inputs to the outputs, as ``onnx.ModelProto``."""
    import jax2onnx

    artifact = model.artifact
    preprocess: Any = artifact.preprocess
    task, module = artifact.task, cast(Any, artifact.model.model)
    adapted = dataclasses.replace(artifact.model, model=module.clone(dtype=jnp.float32))
    prepared = preprocess.abstract(1)
    images = isinstance(preprocess, ImagePreprocess)
    (batch,) = export.symbolic_shape("b")
    rows = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in prepared.values()]
    numbers = describe(artifact)["outputs"]
    variables = {**artifact.variables, "params": _without_nf4(artifact.variables["params"])}

    def program(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        given = dict(zip(prepared, inputs, strict=True))
        if images and preprocess.channels == "bgr":
            given = {name: x[..., ::-1] for name, x in given.items()}
        with _pools_of_slices():
            # Arrays of JAX, because NumPy would dequantize before the trace.
            outputs = adapted.apply(jax.tree.map(jnp.asarray, variables), preprocess.device(given))
        found = task.numbers(outputs)
        return outputs, *(found[name] for name in numbers if name != "outputs")

    def graph_of(function: Any) -> Any:
        with _quiet():
            graph = jax2onnx.to_onnx(
                function,
                rows,
                opset=OPSET,
                input_names=["pixels"] if images else list(prepared),
                output_names=list(numbers),
            )
        del graph.graph.value_info[:]  # shapes between the nodes, of which some are wrong
        return graph

    # jax2onnx has calls of its own in place of those of Flax's modules. They make a better graph,
    # lack some arguments, and do not run the interceptors of deltas.
    if not adapted.deltas:
        with contextlib.suppress(Exception):  # of many types, by operation
            return graph_of(program)
    try:
        return graph_of(jaxpr_as_fun(jax.make_jaxpr(program)(*rows)))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--format=onnx: an operation of {artifact.card['model']['name']} has no form in ONNX "
            f"({type(error).__name__}: {reason}); --format=stablehlo holds every model"
            f"{', and --merge a simpler one' if adapted.deltas else ''}"
        ) from error


def _without_nf4(params: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves with those of nf4 in f32: ONNX Runtime looks nothing up by numbers of 4 bits."""
    found = dict(params)
    for key, value in params.items():
        if isinstance(value, Mapping):
            is_nf4 = any(name.startswith("nf4") for name in value)
            found[key] = dequantize({key: value})[key] if is_nf4 else _without_nf4(value)
    return found


@contextlib.contextmanager
def _pools_of_slices() -> Iterator[None]:
    """Computes the maximum of pools by slices; jax2onnx reads no pool with a padding of its own."""
    own = nn.max_pool

    def max_pool(
        x: jax.Array,
        window_shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        padding: Any = "VALID",
    ) -> jax.Array:
        steps = strides or (1,) * len(window_shape)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:-1], window_shape, steps, padding)
        for axis, (before, after) in enumerate(padding, start=1):
            x = _bordered(x, axis, before, after)
        shape = zip(x.shape[1:-1], window_shape, steps, strict=True)
        counts = [(n - window) // step + 1 for n, window, step in shape]

        def part(first: tuple[int, ...]) -> jax.Array:
            places = zip(first, counts, steps, strict=True)
            return x[:, *(slice(i, i + (n - 1) * step + 1, step) for i, n, step in places)]

        parts = map(part, itertools.product(*map(range, window_shape)))
        return functools.reduce(jnp.maximum, parts)

    nn.max_pool = max_pool
    try:
        yield
    finally:
        nn.max_pool = own


def _bordered(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """The array with values below all others at both ends of an axis."""

    def border(count: int) -> jax.Array:
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        return jnp.full(shape, jnp.finfo(x.dtype).min, x.dtype)

    parts = [*([border(before)] if before else []), x, *([border(after)] if after else [])]
    return jnp.concatenate(parts, axis) if len(parts) > 1 else x


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out remarks of a library on shapes that it does not need."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def opened(model: Model, folder: Path) -> Outputs:
    """The outputs of the graph in ONNX Runtime, on CPU."""
    del model
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types, by operation
        raise UserError(f"--format=onnx: ONNX Runtime does not run the graph: {error}") from error

    def outputs(batch: Batch) -> np.ndarray:
        try:
            return np.asarray(session.run(["outputs"], batch)[0])
        except Exception as error:
            raise UserError(f"--format=onnx: ONNX Runtime does not run it: {error}") from error

    return outputs


def library(model: Model) -> str:
    """The library that reads the folder."""
    del model
    return "onnx"


def usage(model: Model) -> str:
    """Code that runs the graph with ONNX Runtime, and prints the first number of the task."""
    preprocess: Any = model.artifact.preprocess
    number = [*describe(model.artifact)["outputs"]][-1]
    if isinstance(preprocess, ImagePreprocess):
        file = 'np.asarray(Image.open("{}").convert("RGB"))'
        two = f"[{file.format('one.jpg')}, {file.format('other.jpg')}]"
        image = two if len(preprocess.columns) == 2 else file.format("photo.jpg")
        library = "from PIL import Image"
        inputs: tuple[str, ...] = (f'batch = {{"image": np.stack([{image}])}}',)
    else:
        library = "from tokenizers import Tokenizer"
        inputs = _tokens(preprocess)
    return "\n".join(
        (
            "import numpy as np",
            "import onnxruntime",
            library,
            "",
            *inputs,
            "session = onnxruntime.InferenceSession(FOLDER + '/model.onnx')",
            f"print(session.run(['{number}'], batch)[0])",
        )
    )


def _tokens(preprocess: TextPreprocess) -> tuple[str, ...]:
    """Code that makes the inputs of a model of texts."""
    texts = '[("One text.", "Another.")]' if len(preprocess.columns) == 2 else '["A text."]'
    found, row = f"tokenizer.encode_batch({texts})", "getattr(x, y)"
    if preprocess.pairs == "apart" and len(preprocess.columns) == 2:
        found, row = (
            f"[tokenizer.encode_batch(pair) for pair in {texts}]",
            "[getattr(z, y) for z in x]",
        )
    return (
        "tokenizer = Tokenizer.from_file(FOLDER + '/tokenizer.json')",
        f"found = {found}",
        "names = dict(input_ids='ids', attention_mask='attention_mask', token_type_ids='type_ids')",
        f"batch = {{n: np.array([{row} for x in found], np.int32) for n, y in names.items()}}",
    )
