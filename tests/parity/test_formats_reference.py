"""Our readers agree with those of torch, Hugging Face and Keras on files of these projects."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights

NEEDS = "not run: needs requirements-reference.txt"


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_weights(path) as weights:
        return {name: weights.read(name) for name in weights.names()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


# --- PyTorch --------------------------------------------------------------------------------------


def as_numpy(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def state_dict():
    torch = pytest.importorskip("torch", reason=NEEDS)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {
        "base": base,
        "tied": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "expanded": torch.ones(1, 3).expand(1, 3),
        "parameter": torch.nn.Parameter(base * 2),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        **{
            str(dtype).removeprefix("torch."): torch.tensor([1, 0, 1]).to(dtype)
            for dtype in (
                torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
            )
        },
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state", "teacher"])
def test_files_that_torch_saves(tmp_path, zipped, key):
    content = state_dict()
    import torch

    path = tmp_path / "a.pth"
    whole = content if key is None else {key: content, "epoch": 3, "args": {"lr": 0.1}}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_all(path), {name: as_numpy(tensor) for name, tensor in content.items()})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason=NEEDS)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear.*Save only the state dict"):
        open_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("safe", [True, False])
def test_files_that_the_hub_shards(tmp_path, safe):
    hub = pytest.importorskip("huggingface_hub", reason=NEEDS)
    torch = pytest.importorskip("torch", reason=NEEDS)
    content = {f"layer.{i}.weight": torch.randn(50, 7) for i in range(9)}
    hub.save_torch_state_dict(content, tmp_path, max_shard_size="4KB", safe_serialization=safe)
    assert len(list(tmp_path.glob("*.index.json"))) == 1
    assert_same(read_all(tmp_path), {name: as_numpy(tensor) for name, tensor in content.items()})


def test_files_that_transformers_saves(tmp_path):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = transformers.BertModel(config)
    expected = {name: as_numpy(tensor) for name, tensor in model.state_dict().items()}
    for size in ("1GB", "8KB"):
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        assert_same(read_all(tmp_path / size), expected)
    with open_weights(tmp_path / "1GB") as weights:
        assert weights.metadata["format"] == "pt"


# --- Keras ----------------------------------------------------------------------------------------


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras", reason=NEEDS)


def small():
    layers = keras().layers
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="block1_conv1")(inputs)
    x = layers.Conv2D(4, 3, use_bias=False, name="block1_conv2")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, name="thin")(x)
    x = layers.SeparableConv2D(4, 1, name="both")(x)
    x = layers.LayerNormalization(name="ln")(x)
    x = layers.Reshape((4, 4))(x)
    x = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    x = layers.Bidirectional(layers.GRU(3, name="gru"), name="both_ways")(x)
    parts = [layers.Input((6,)), layers.Dense(3, name="one"), layers.Dense(2, use_bias=False)]
    x = keras().Sequential(parts, name="inner")(x)
    return keras().Model(inputs, layers.Dense(2, name="predictions")(x))


def mobilenet():
    return keras().applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, include_top=False
    )


def resnet():
    keras()
    import keras.src.applications.resnet as module  # the public module has no general ResNet

    def stack(x):
        return module.stack_residual_blocks_v1(x, 4, 2, stride1=1, name="conv2")

    return module.ResNet(
        stack, False, True, include_top=True, weights=None, input_shape=(32, 32, 3),
        classes=3, name="small", weights_name=None,
    )  # fmt: skip


def own_names(model) -> dict[str, np.ndarray]:
    """The model's variables, with the names of Keras, except depthwise kernels."""
    out = {}
    for layer in model._flatten_layers(include_self=False, recursive=True):
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            path = variable.path
            if type(layer).__name__ == "DepthwiseConv2D":
                path = path.replace(f"{layer.name}/kernel", f"{layer.name}/depthwise_kernel")
            out[path] = np.array(variable)
    return out


@pytest.mark.parametrize("make", [small, mobilenet, resnet])
def test_the_three_files_of_keras_have_one_naming(tmp_path, make):
    model = make()
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    expected = own_names(model)
    assert len(expected) == len(model.get_weights())
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
    model.save_weights(tmp_path / "a.weights.h5")
    for name in ("a.keras", "a.h5", "a.weights.h5"):
        assert_same(dict(sorted(read_all(tmp_path / name).items())), dict(sorted(expected.items())))


@pytest.mark.parametrize("make", [small, mobilenet, resnet])
def test_an_archive_without_layer_names_in_its_weights_takes_them_from_its_config(tmp_path, make):
    import h5py

    model = make()
    model.save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        archive.extractall(tmp_path / "members")
    with h5py.File(tmp_path / "members" / "model.weights.h5", "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        for member in (tmp_path / "members").iterdir():
            archive.write(member, member.name)
    shutil.rmtree(tmp_path / "members")
    found, expected = read_all(tmp_path / "b.keras"), own_names(model)
    # The config has no entries for the parts of attention and recurrent layers.
    named = {n: a for n, a in expected.items() if not n.startswith(("mha/", "both_ways/"))}
    assert_same({name: found[name] for name in named}, named)


def test_an_optimizer_and_metrics_of_keras_stand_beside(tmp_path):
    layers = keras().layers
    model = keras().Sequential([layers.Input((3,)), layers.Dense(2, name="out")])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
    for name in ("a.keras", "a.h5"):
        with open_weights(tmp_path / name) as weights:
            assert set(weights.names()) == {"out/kernel", "out/bias"}
            assert weights.other_entries


def test_bfloat16_of_keras(tmp_path):
    layers = keras().layers
    model = keras().Sequential([layers.Input((3,)), layers.Dense(2, name="o", dtype="bfloat16")])
    expected = {f"o/{v.name}": np.array(v.value) for v in model.layers[0].weights}
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
        found = read_all(tmp_path / name)
        assert found["o/kernel"].dtype == ml_dtypes.bfloat16
        assert_same(dict(sorted(found.items())), dict(sorted(expected.items())))
