"""Loading: the manifest has every tensor and every leaf, and errors name every problem."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from resnet_files import akamaster, resnet20
from safetensors import safe_open
from safetensors.numpy import save_file
from torch_writer import tensor, write_legacy

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.pretrained import find_map, load, save_native
from finetune_jax.pretrained.maps import maps_of


def check_complete(manifest, names, init) -> None:
    """Asserts that every tensor and every leaf is in one row."""
    assert sorted(r.source_name for r in manifest.rows if r.source_name) == sorted(names)
    assert sorted(r.leaf for r in manifest.rows if r.leaf) == sorted(tree.flatten(init))


@pytest.fixture
def trained():
    return resnet20(seed=1)


@pytest.fixture
def init():
    return resnet20(seed=2)


@pytest.fixture
def tensors(trained):
    return akamaster(trained)


@pytest.fixture
def refused(tmp_path, init):
    """Returns the message of the error that loading the tensors must raise."""

    def message(tensors, **settings) -> str:
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(UserError) as error:
            load(tmp_path / "bad.safetensors", "resnet_cifar", init, **settings)
        assert "bad.safetensors" in str(error.value)
        return str(error.value)

    return message


def test_a_file_written_anew_while_it_is_read_has_no_digest(tmp_path, tensors, init):
    path = tmp_path / "r.safetensors"
    save_file(tensors, path)
    _, manifest = load(path, "resnet_cifar", init)
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def place(leaf, array):
        os.utime(path, ns=(1, 1))
        return array

    _, manifest = load(path, "resnet_cifar", init, place=place)
    with pytest.raises(UserError, match=r"r.safetensors: changed while it was read"):
        manifest.to_json()


def test_native_files_come_back_bit_for_bit(tmp_path, trained, init):
    path = tmp_path / "native.safetensors"
    # Views that are not in C order must be saved with their values in the right order.
    trained["params"]["head"]["kernel"] = np.asfortranarray(trained["params"]["head"]["kernel"])
    save_native(path, trained, {"dataset": "digits"})
    variables, manifest = load(path, "resnet_cifar", init)
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert manifest.origin == "native"
    assert manifest.counts() == {"loaded": len(tree.flatten(init))}
    check_complete(manifest, tree.flatten(trained), init)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"dataset": "digits"}
    assert [p.name for p in tmp_path.iterdir()] == ["native.safetensors"]


def test_jax_arrays_and_a_model_without_statistics(tmp_path):
    params = {
        "params": {"block_0": {"w": jnp.ones((2, 2), jnp.bfloat16)}, "head": {"b": jnp.ones(3)}}
    }
    save_native(tmp_path / "vit.safetensors", params, {})
    variables, _ = load(tmp_path / "vit.safetensors", "vit", params)
    assert tree.fingerprint(variables) == tree.fingerprint(params)


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch, trained):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"older")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="disk full"):
        save_native(path, trained, {})
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_akamaster_layouts_are_turned_into_ours(tmp_path, trained, init, prefix):
    tensors = akamaster(trained, prefix)
    path = tmp_path / "resnet20.th"
    write_legacy(path, {"state_dict": {n: tensor(n, a) for n, a in tensors.items()}, "epoch": 3})
    variables, manifest = load(path, "resnet_cifar", init)
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert manifest.counts() == {"transformed": 20, "loaded": 77, "dropped": 19}
    check_complete(manifest, tensors, init)
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "the momentum here is constant" in manifest.summary()
    assert "not read: 'epoch'" in manifest.summary()
    assert json.loads(json.dumps(manifest.to_json())) == manifest.to_json()
    assert str(tmp_path) not in json.dumps(manifest.to_json())


def test_another_head_keeps_its_initial_values(tmp_path, trained, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    init = resnet20(classes=5, seed=2)
    variables, manifest = load(tmp_path / "w.safetensors", "resnet_cifar", init)
    check_complete(manifest, tensors, init)
    assert tree.fingerprint(variables["params"]["head"]) == tree.fingerprint(init["params"]["head"])
    fresh = {r.leaf: r for r in manifest.rows if r.decision == "reinitialised"}
    assert set(fresh) == {"params/head/kernel", "params/head/bias"}
    kernel = fresh["params/head/kernel"]
    assert "in file, (64, 5) in model" in kernel.reason
    body = {k: v for k, v in trained["params"].items() if k != "head"}
    loaded = {k: v for k, v in variables["params"].items() if k != "head"}
    assert tree.fingerprint(loaded) == tree.fingerprint(body)
    assert (
        "reinitialised: params/head/bias: shape (10,) in file, (5,) in model" in manifest.summary()
    )


def test_one_leaf_that_does_not_fit_renews_the_whole_head(tmp_path, tensors, init):
    tensors["module.linear.weight"] = np.zeros((10, 63), np.float32)
    save_file(tensors, tmp_path / "w.safetensors")
    variables, manifest = load(tmp_path / "w.safetensors", "resnet_cifar", init)
    assert tree.fingerprint(variables["params"]["head"]) == tree.fingerprint(init["params"]["head"])
    (bias,) = (r for r in manifest.rows if r.leaf == "params/head/bias")
    assert (bias.decision, bias.source_name) == ("reinitialised", "module.linear.bias")
    assert "params/head/kernel does not fit" in bias.reason


def test_a_new_head_on_request_needs_none_in_the_file(tmp_path, tensors, init):
    del tensors["module.linear.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    settings = {"reinitialise_head": True}
    variables, manifest = load(tmp_path / "w.safetensors", "resnet_cifar", init, **settings)
    check_complete(manifest, tensors, init)
    assert tree.fingerprint(variables["params"]["head"]) == tree.fingerprint(init["params"]["head"])
    assert manifest.counts()["reinitialised"] == 2


def test_casts_are_noted(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    init = resnet20(seed=2, dtype=ml_dtypes.bfloat16)
    variables, manifest = load(tmp_path / "w.safetensors", "resnet_cifar", init)
    assert {a.dtype.name for a in tree.flatten(variables).values()} == {"bfloat16"}
    (row,) = (r for r in manifest.rows if r.leaf == "params/stem/conv/kernel")
    assert (row.decision, row.source_dtype, row.dtype) == ("cast", "float32", "bfloat16")
    assert row.reason == "out in h w -> h w in out; float32 to bfloat16"


def test_all_problems_are_named_at_once(refused, tensors):
    tensors["module.conv1.weight"] = np.zeros((16, 1, 3, 3), np.float32)
    tensors["module.layer1.0.bn1.wieght"] = tensors.pop("module.layer1.0.bn1.weight")
    tensors["module.layer4.0.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    tensors["module.bn1.bias"] = np.zeros(16, np.int32)
    tensors["module.bn1.running_var"][3] = np.nan
    tensors["bn1.running_mean"] = tensors["module.bn1.running_mean"].copy()
    message = refused(tensors)
    assert "7 problems" in message
    for part in (
        "'module.conv1.weight' for params/stem/conv/kernel: shape (3, 3, 1, 16) by out in h w -> "
        "h w in out of (16, 1, 3, 3) in file, (3, 3, 3, 16) in model",
        "'module.layer1.0.bn1.wieght' float32[16] has an unknown name. "
        "Did you mean 'module.layer1.0.bn1.weight'?",
        "leaf params/layer1_block0/norm1/scale float32[16] gets no tensor; expected "
        "'module.layer1.0.bn1.weight'. Did you mean 'module.layer1.0.bn1.wieght'?",
        "'module.layer4.0.conv1.weight' float32[64, 64, 3, 3] belongs to "
        "params/layer4_block0/conv1/kernel, which the model does not have. Did you mean",
        "'module.bn1.bias' for params/stem/norm/bias: dtype int32 in file, float32 in model",
        "'module.bn1.running_var' for batch_stats/stem/norm/var: 1 of 16 values are NaN",
        "both belong to batch_stats/stem/norm/mean",
    ):
        assert part in message, message


def test_a_transform_of_the_wrong_rank_is_a_problem(refused, tensors):
    tensors["module.conv1.weight"] = np.zeros((16, 27), np.float32)
    message = refused(tensors)
    assert "(16, 27) in file: 'out in h w -> h w in out' describes 4 axes" in message


def test_a_missing_head_is_not_made_up(refused, tensors):
    del tensors["module.linear.bias"]
    assert "leaf params/head/bias" in refused(tensors)


def test_an_overflowing_cast_is_refused(tmp_path, tensors):
    tensors["module.bn1.weight"] = np.full(16, 1e30, np.float32)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="16 of 16 values .* once cast from float32 to float16"):
        load(tmp_path / "w.safetensors", "resnet_cifar", resnet20(dtype=np.float16))


def test_a_file_without_known_names_lists_the_known_origins(refused, tmp_path, init):
    assert "known origins: native, akamaster" in refused({"encoder.w": np.ones(2, np.float32)})
    save_file({"w": np.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="Did you mean 'resnet_cifar'"):
        load(tmp_path / "w.safetensors", "resnet_cifr", init)
    with pytest.raises(UserError, match="Did you mean 'head'"):
        save_native(tmp_path / "n.safetensors", init, {})
        load(tmp_path / "n.safetensors", "resnet_cifar", init, reinitialise=("haed",))


def test_find_map_lists_what_fits_no_origin(tensors):
    assert find_map("resnet_cifar", tensors).origin == "akamaster"
    with pytest.raises(UserError, match="closest: akamaster.*'encoder.w'"):
        find_map("resnet_cifar", [*tensors, "encoder.w"])


@pytest.mark.parametrize("names", maps_of("resnet_cifar"), ids=lambda m: m.origin)
def test_name_maps_read_both_ways(names, init):
    leaves = tree.flatten(init)
    for leaf in leaves:
        (target,) = names.targets(names.source(leaf))
        assert target.leaf == leaf
    tensors = names.write(leaves)
    assert len(tensors) == len(leaves)
    for name, array in tensors.items():
        (target,) = names.targets(name)
        np.testing.assert_array_equal(target.forward(array), leaves[target.leaf])


@pytest.mark.skipif(
    "FINETUNE_JAX_DATA" not in os.environ,
    reason="not run: needs FINETUNE_JAX_DATA, a folder with resnet_cifar10/resnet20-12fca82f.th",
)
def test_the_published_resnet20_is_loaded_whole(init):
    folder = Path(os.environ["FINETUNE_JAX_DATA"])
    path = folder / "resnet_cifar10" / "resnet20-12fca82f.th"
    variables, manifest = load(path, "resnet_cifar", init)
    assert manifest.counts() == {"transformed": 20, "loaded": 77}
    assert manifest.other_entries == ("'best_prec1'",)
    # BatchNorm's scale and bias included, its statistics not.
    assert tree.size(variables["params"]) == 269_722
    assert tree.size(variables["batch_stats"]) == 1_376
    assert all((v >= 0).all() for p, v in tree.flatten(variables).items() if p.endswith("/var"))


def test_a_negative_variance_is_refused_and_a_bad_tensor_that_is_dropped_is_not(tmp_path, tensors):
    tensors["module.linear.weight"][0, 0] = np.nan
    init = resnet20(classes=7, seed=1)
    save_file(tensors, tmp_path / "w.safetensors")
    variables, manifest = load(tmp_path / "w.safetensors", "resnet_cifar", init)
    assert manifest.counts()["reinitialised"] == 2
    assert tree.first_nonfinite(variables) is None
    tensors["module.bn1.running_var"][3] = -1e-3
    save_file(tensors, tmp_path / "w.safetensors")
    message = "'module.bn1.running_var' for batch_stats/stem/norm/var: 1 of 16 variances are neg"
    with pytest.raises(UserError, match=message):
        load(tmp_path / "w.safetensors", "resnet_cifar", init)
