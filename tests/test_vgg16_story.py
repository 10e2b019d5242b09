"""A Keras VGG-16 file is fine-tuned to ten digits, and the artifact predicts a picture."""

from __future__ import annotations

import functools
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default
from finetune_jax.data.sources import open_source
from finetune_jax.errors import UserError
from finetune_jax.models import MODELS, Entry
from finetune_jax.models.registry import CAFFE
from finetune_jax.models.vgg import DEPTHS, HEADS, VGG
from finetune_jax.setup import open_setup
from finetune_jax.training import loop

WIDTHS, HIDDEN, CLASSES = (4, 4, 8, 8, 8), (16, 12), 9
ROOT = Path(__file__).parent.parent
PUBLISHED = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The registry's VGG-16 of Keras, but narrow, as ``vgg16_narrow``."""
    build = functools.partial(
        VGG, DEPTHS[16], widths=WIDTHS, hidden=HIDDEN, neck_width=8, pool_side=0
    )
    entry = Entry("vgg16", build, inputs=CAFFE, classes=CLASSES, dropout=True, heads=HEADS)
    monkeypatch.setitem(MODELS, "vgg16_narrow", entry)


def keras_layers() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) by the layer names of keras.applications.vgg16, for images of 32 pixels."""
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        kernel, bias = generator.normal(0, scale, shape), generator.normal(0, 0.1, shape[-1])
        return kernel.astype(np.float32), bias.astype(np.float32)

    layers, before = {}, 3
    for i, (width, count) in enumerate(zip(WIDTHS, DEPTHS[16], strict=True), 1):
        for j in range(1, count + 1):
            layers[f"block{i}_conv{j}"] = draw(3, 3, before, width)
            before = width
    for name, width in (("fc1", HIDDEN[0]), ("fc2", HIDDEN[1]), ("predictions", CLASSES)):
        layers[name] = draw(before, width)
        before = width
    return layers


def write_h5(folder: Path) -> Path:
    """As the file that keras.applications has published since Keras 1: see its layer groups."""
    h5py = pytest.importorskip("h5py", reason="not run: needs h5py")
    path = folder / PUBLISHED
    with h5py.File(path, "w") as file:
        layers = keras_layers()
        pools = [f"block{i}_pool" for i in range(1, 6)]
        file.attrs["layer_names"] = [n.encode() for n in (*layers, *pools, "flatten", "input_1")]
        file.attrs["backend"] = b"tensorflow"
        for name in (*pools, "flatten", "input_1"):
            file.create_group(name).attrs["weight_names"] = []
        for name, (kernel, bias) in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_{w}_1:0".encode() for w in "Wb"]
            group[f"{name}_W_1:0"], group[f"{name}_b_1:0"] = kernel, bias
    return path


def write_safetensors(folder: Path) -> Path:
    """The same names without h5py, which is no requirement."""
    from safetensors.numpy import save_file

    path = folder / "vgg16.safetensors"
    save_file(
        {
            f"{name}/{variable}": array
            for name, pair in keras_layers().items()
            for variable, array in zip(("kernel", "bias"), pair, strict=True)
        },
        path,
    )
    return path


def settings(path: Path, head: str, scheme: str):
    config = default()
    config.scheme = scheme
    config.pretrained.path = str(path)
    config.model.name = "vgg16_narrow"
    config.model.head = head
    config.data.source = "digits"
    config.data.train, config.data.validation = "train[:32]", "validation[:16]"
    config.data.test = "test[:16]"
    config.data.image_size = 32
    config.train.batch_size = 16
    config.train.steps = 2
    config.eval.batch_size = 16
    config.log.tensorboard = False
    return config


def digit(folder: Path) -> Path:
    """One picture of the test split, as a file."""
    path = folder / "digit.png"
    Image.fromarray(open_source("digits").read("test[:1]")[0]["image"]).save(path)
    return path


@pytest.mark.parametrize(
    ("write", "head", "scheme", "contents"),
    [
        (write_h5, "last_fc_only", "linear_probe", "all"),
        (write_safetensors, "flatten_mlp", "stages('fc.*') + head", "delta"),
        (write_safetensors, "concat_pool", "last_k(1)", "all"),
    ],
    ids=["h5-last_fc_only", "flatten_mlp", "concat_pool"],
)
def test_from_the_keras_file_to_a_prediction(tmp_path, write, head, scheme, contents):
    file = write(tmp_path)
    config = settings(file, head, scheme)
    config.artifact.contents = contents
    result = loop.train(open_setup(config), tmp_path / "run")
    assert result["test"]["n_scored"] == 16

    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["origin"] == "keras"
    fresh = {r["leaf"].split("/")[1] for r in manifest["rows"] if r["decision"] == "reinitialised"}
    assert (
        fresh
        == {
            "last_fc_only": {"head"},
            "flatten_mlp": {"fc1", "fc2", "head"},
            "concat_pool": {"neck", "head"},
        }[head]
    )
    dropped = {r["source_name"] for r in manifest["rows"] if r["decision"] == "dropped"}
    gone = {f"fc{i}/{variable}" for i in (1, 2) for variable in ("kernel", "bias")}
    assert dropped == (gone if head == "concat_pool" else set())

    artifact = Artifact.load(tmp_path / "run", str(file) if contents == "delta" else "")
    assert artifact.preprocess.channels == "bgr"
    leaves = tree.flatten(artifact.variables["params"])
    layers = keras_layers()
    for i in range(1, 5):  # frozen under every one of the schemes
        np.testing.assert_array_equal(
            leaves[f"block{i}/conv2/kernel"], layers[f"block{i}_conv2"][0]
        )
    if head == "last_fc_only":
        np.testing.assert_array_equal(leaves["fc1/dense/kernel"], layers["fc1"][0])

    (prediction,) = artifact.predict([digit(tmp_path)])
    assert prediction["label"] in artifact.task.class_names
    assert len(prediction["probabilities"]) == 10
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_what_is_new_must_train(tmp_path):
    setup = open_setup(settings(write_safetensors(tmp_path), "flatten_mlp", "linear_probe"))
    with pytest.raises(UserError, match=r"have random values: fc1.*stages\('fc1', 'fc2'\)"):
        load_variables(setup)


def test_pixels_reach_the_network_as_keras_feeds_them():
    from finetune_jax.data.preprocess import ImagePreprocess

    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    preprocess = ImagePreprocess(**{**vars(CAFFE), "size": 32})
    batch = {name: array[None] for name, array in preprocess.host({"image": image}).items()}
    found = np.asarray(preprocess.device(batch))[0]
    small = Image.fromarray(image).resize((32, 32), Image.Resampling.NEAREST)
    expected = np.asarray(small, np.float32)[..., ::-1] - (103.939, 116.779, 123.68)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_logits_agree_with_keras(tmp_path, suffix, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="not run: needs requirements-reference.txt")
    from finetune_jax.models import build, initial_variables
    from finetune_jax.pretrained import load

    reference = keras.applications.VGG16(
        weights=None, input_shape=(32, 32, 3), classes=1000, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    for layer in reference.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.normal(0, 0.1, bias.shape)])
    path = tmp_path / f"vgg16{suffix}"
    if suffix == ".weights.h5":
        reference.save_weights(path)
    else:
        reference.save(path)
    model = build("vgg16_keras", 1000)
    init = initial_variables(model, 32, stages=())
    variables, manifest = load(path, "vgg16", init)
    assert manifest.origin == "keras"
    assert set(manifest.counts()) == {"loaded"}
    pixels = generator.integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    theirs = keras.applications.vgg16.preprocess_input(pixels.copy())
    ours = (pixels[..., ::-1] / 255 - np.float32(CAFFE.mean)) / np.float32(CAFFE.std)
    expected = np.asarray(reference(theirs))
    found = np.asarray(jax.jit(model.apply)(variables, ours))
    scale = np.abs(expected).max()
    print(f"worst {np.abs(found - expected).max():.2e} of {scale:.3g}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=min(1e-4, 1e-5 * scale))


@pytest.mark.parametrize("head", HEADS)
def test_the_config_trains_what_is_new(head):
    get_config = runpy.run_path(str(ROOT / "configs" / "vgg16_keras.py"))["get_config"]
    setup = open_setup(get_config(head))
    fresh = {"head", *setup.model.fresh_stages}
    assert {path.split("/")[0] for path in setup.trainable} == fresh
    assert setup.preprocess.channels == "bgr"
