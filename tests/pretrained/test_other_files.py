"""The error about a file that is no weights of our models names the kind of the file."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_jax.errors import UserError
from finetune_jax.models import build, initial_variables
from finetune_jax.pretrained import load, open_weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.layer1.0.conv1.lora_A.weight", "an adapter of peft.*merge_and_unload"),
        ("layer1.0.conv1.base_layer.weight", "an adapter of peft"),
        ("resnet/embedder/embedder/convolution/kernel", "names of transformers' Flax models"),
    ],
)
def test_adapters_and_flax_names_are_named(tmp_path, name, message):
    save_file({name: np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors")
    model = build("resnet8_cifar", 10, image_size=16)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x.safetensors", "resnet_cifar", initial_variables(model, 16), model)


def test_a_path_that_does_not_exist_is_reported(tmp_path):
    model = build("resnet8_cifar", 10, image_size=16)
    with pytest.raises(UserError, match="no such file or folder"):
        load(tmp_path / "bert", "resnet_cifar", initial_variables(model, 16), model)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("bert-base-uncased", "hf:OWNER/bert-base-uncased$"), ("google/bert_tiny", "hf:google/bert_")],
)
def test_a_name_of_the_hub_without_its_prefix_is_recognised(name, hint):
    with pytest.raises(UserError, match=f"no such file or folder; a repository .*{hint}"):
        open_weights(name)


def test_a_saved_model_of_tensorflow_is_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(UserError, match="a SavedModel of TensorFlow, .* save the model as .h5"):
        open_weights(tmp_path)


def test_an_adapter_beside_the_weights_is_not_ignored_silently(tmp_path, capsys):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with open_weights(tmp_path):
        assert "adapter" not in capsys.readouterr().err
    save_file({"lora_A": np.zeros(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    with open_weights(tmp_path) as weights:
        assert [*weights.names()] == ["a"]
    assert "the adapter of peft beside it (adapter_model.safetensors) is not" in (
        capsys.readouterr().err
    )
