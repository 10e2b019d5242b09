"""ONNX graphs in ONNX Runtime: pixels, outputs, the script of the page, and refusals."""

import dataclasses
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from exported_models import SMALL_BERT, SMALL_VIT, examples, made
from test_export import examples_of, in_another_process, script_of

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.data.images import INTERPOLATIONS, resize
from finetune_jax.errors import UserError
from finetune_jax.export import Model, export
from finetune_jax.export import onnx as format_
from finetune_jax.export.formats import format_of
from finetune_jax.quantization import FORMATS, quantize
from finetune_jax.tasks.similarity import Similarity

_MISSING = [name for name in ("jax2onnx", "onnx", "onnxruntime") if not find_spec(name)]
with_libraries = pytest.mark.skipif(
    bool(_MISSING), reason=f"{', '.join(_MISSING)}: pip install, see docs/export.md"
)


@with_libraries
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop", [0.0, 0.875, 1.0])
def test_a_graph_resizes_images_of_any_size_as_pillow(interpolation: str, crop: float) -> None:
    import onnxruntime

    from finetune_jax.export.onnx_pixels import resizing

    rng = np.random.default_rng(round(crop * 1000) + len(interpolation))
    side = int(rng.choice([8, 17, 28, 32]))
    graph = resizing(side, interpolation, crop, pairs=False, opset=format_.OPSET)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    some = [(int(h), int(w)) for h, w in rng.integers(1, 160, (20, 2))]
    for h, w in [(side, side), (1, 1), (1, 300), (300, 1), (5, 900), (3 * side, side), *some]:
        images = rng.integers(0, 256, (2, h, w, 3), dtype=np.uint8)
        expected = np.stack([resize(x, side, interpolation, crop) for x in images])
        [found] = session.run(None, {"image": images})
        np.testing.assert_array_equal(found, expected, err_msg=f"{h} x {w}")


@pytest.fixture(scope="module")
def exported(short_run, images, tmp_path_factory):
    """(folder, artifact) of the short run as a graph."""
    folder = tmp_path_factory.mktemp("exported") / "graph"
    artifact = Artifact.load(short_run)
    found = export(Model(artifact), "onnx", folder, examples_of(artifact, images))
    assert found["argmax_agreement"] == 1 and found["max_abs_difference"] < 1e-4
    return folder, artifact


@with_libraries
@pytest.mark.slow
def test_a_graph_runs_without_this_package_on_an_image_of_any_size(exported, images):
    folder, artifact = exported
    path = sorted(images.glob("*.png"))[1]
    printed = in_another_process(script_of("onnx"), folder, path)
    [expected] = artifact.predict([path])
    label, share = printed.split()
    assert label == expected["label"]
    assert float(share) == pytest.approx(expected["probabilities"][label], abs=1e-4)


@with_libraries
@pytest.mark.slow
def test_a_graph_describes_itself(exported):
    import onnx

    folder, artifact = exported
    graph = onnx.load(folder / "model.onnx")
    described = {x.key: x.value for x in graph.metadata_props}
    assert json.loads(described["classes"]) == list(artifact.task.class_names)
    assert json.loads(described["preprocess"])["interpolation"] == "bilinear"
    assert [x.name for x in graph.graph.output] == ["outputs", "probabilities"]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"


@with_libraries
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (SMALL_VIT, ""),
        (SMALL_VIT, "lora(rank=2) + head"),
        ("resnet18", ""),  # pools with a padding
        ("squeezenet1_0", ""),  # pools with a padding of one side
    ],
)
def test_a_graph_has_the_outputs_of_its_model(name: str, scheme: str, tmp_path: Path) -> None:
    model = made(name, size=48, scheme=scheme)
    assert bool(model.artifact.model.deltas) == bool(scheme)
    found = export(model, "onnx", tmp_path / "out", examples(model))
    assert found["max_abs_difference"] < 1e-4 * max(1, found["largest_output"])


@with_libraries
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format_name"),
    [("resnet8_cifar", "int8"), *((SMALL_VIT, x) for x in ("int8", "fp8", "int4", "nf4"))],
)
def test_a_graph_of_quantized_weights_stays_small(
    tmp_path: Path, name: str, format_name: str
) -> None:
    model = made(name, size=32)
    variables = model.artifact.variables
    kernels = [path for path in tree.flatten(variables["params"]) if path.endswith("kernel")]
    params = quantize(variables["params"], dict.fromkeys(kernels, FORMATS[format_name]))
    variables = jax.tree.map(np.asarray, {**variables, "params": params})
    small = Model(dataclasses.replace(model.artifact, variables=variables))
    found = export(small, "onnx", tmp_path / "small", examples(model))
    assert found["max_abs_difference"] < 1e-4 * max(1, found["largest_output"])
    size = (tmp_path / "small" / "model.onnx").stat().st_size
    stored = tree.nbytes(model.artifact.variables if format_name == "nf4" else variables)
    assert size < stored + 90_000  # the nodes


@with_libraries
@pytest.mark.slow
def test_a_graph_of_texts_runs_without_this_package(tmp_path: Path) -> None:
    model = made(f"{SMALL_BERT[:-1]}, pooling='mean')", size=12)
    export(model, "onnx", tmp_path / "out", examples(model))
    texts = ["the cat sat on a mat", "a dog ran far away now " * 9]
    printed = in_another_process(script_of("onnx", 1), tmp_path / "out", *texts)
    found = np.array([row.split() for row in re.findall(r"[\d.e+ -]{9,}", printed)], np.float32)
    expected = [[*x["probabilities"].items()] for x in model.artifact.predict(texts)]
    names = model.artifact.task.class_names
    np.testing.assert_allclose(found, [[dict(x)[n] for n in names] for x in expected], atol=1e-4)


@with_libraries
@pytest.mark.slow
def test_a_graph_of_two_texts_that_are_read_apart_has_their_cosine(tmp_path: Path) -> None:
    import onnxruntime

    model = made(f"{SMALL_BERT[:-1]}, pooling='mean')", size=12, task=Similarity(width=32))
    preprocess = dataclasses.replace(
        model.artifact.preprocess, columns=("one", "other"), pairs="apart"
    )
    model = Model(dataclasses.replace(model.artifact, preprocess=preprocess))
    pair = {"one": "the cat sat", "other": "a dog ran far"}
    found = export(model, "onnx", tmp_path / "out", [pair, {**pair, "one": "far away"}])
    assert found["max_abs_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    batch = {name: x[None] for name, x in preprocess.host(pair).items()}
    [cosine] = session.run(["cosine"], batch)[0]
    assert cosine == pytest.approx(model.artifact.predict([pair])[0]["cosine"], abs=1e-5)
    code = format_.usage(model).replace("FOLDER", repr(str(tmp_path / "out")))
    assert len(code.splitlines()) <= 10
    assert -1 <= float(in_another_process(code, tmp_path).strip("[] \n")) <= 1


def test_layers_that_round_their_inputs_are_refused():
    model = made(SMALL_VIT)
    params = model.artifact.variables["params"]
    path = "block_0/mlp_in/kernel"
    quantized = quantize(params, {path: FORMATS["w8a8"]})
    changed = dataclasses.replace(model.artifact, variables={"params": quantized})
    with pytest.raises(UserError, match="rounded to 8 bits"):
        format_.require(Model(changed))


def test_a_missing_library_is_named(short_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs jax2onnx .*pip install --no-deps jax2onnx"):
        format_of("onnx").require(Model(Artifact.load(short_run)))


def test_an_operation_without_a_form_is_named_and_nothing_is_left(
    short_run, images, tmp_path, monkeypatch
):
    def to_onnx(*_: Any, **__: Any) -> None:
        raise NotImplementedError("No plugins registered for JAX primitive: 'eigh'")

    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=to_onnx))
    artifact = Artifact.load(short_run)
    with pytest.raises(UserError, match="resnet8_cifar has no form in ONNX .*'eigh'"):
        export(Model(artifact), "onnx", tmp_path / "out", examples_of(artifact, images))
    assert not list(tmp_path.iterdir())
