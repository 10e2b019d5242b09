"""The three kinds of Keras files: equal names, no code, no links, no sizes beyond the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from format_samples import (
    KERAS_ARRAYS,
    KERAS_CONFIG,
    write_keras,
    write_keras_h5,
    write_weights_h5,
)

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats import hdf5_catalog, hdf5_file, open_weights
from finetune_jax.pretrained.formats.keras_names import named_path, variable_names

h5py = pytest.importorskip("h5py")
VALUES = np.arange(4, dtype=np.float32)


def names(path: Path) -> set[str]:
    with open_weights(path) as weights:
        return set(weights.names())


@pytest.mark.parametrize("named", [True, False])
def test_an_archive_gives_layer_and_variable_names(tmp_path, named):
    path = write_keras(tmp_path / "a.keras", named)
    with open_weights(path) as weights:
        assert set(weights.names()) == set(KERAS_ARRAYS)
        assert weights.other_entries == ("optimizer/vars/0",)
        assert weights.metadata == {"keras_version": "3.11.0"}


def test_numbered_weights_are_named_as_far_as_the_file_tells(tmp_path):
    unknown = {"norm/beta": "norm/0"}
    expected = {unknown.get(name, name) for name in KERAS_ARRAYS}
    assert names(write_weights_h5(tmp_path / "a.weights.h5")) == expected
    # Before the `name` attribute, Keras only has groups, which number the layers of a class.
    assert names(write_weights_h5(tmp_path / "b.weights.h5", named=False)) == {
        "conv2d/kernel",
        "conv2d/bias",
        "batch_normalization/0",
        "batch_normalization/moving_mean",
        "batch_normalization/moving_variance",
        "depthwise_conv2d/depthwise_kernel",
        "sequential/dense/kernel",
    }


def test_the_oldest_numbered_files_open_too(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for number in range(12):
            suffix = f"_{number}" if number else ""
            file[f"_layer_checkpoint_dependencies/conv2d{suffix}/vars/0"] = np.full(1, number)
    with open_weights(tmp_path / "a.weights.h5") as weights:
        assert weights.names()[:3] == ("conv2d/kernel", "conv2d_1/kernel", "conv2d_2/kernel")
        assert weights.read("conv2d_11/kernel") == 11


def test_a_depthwise_kernel_has_one_name_in_all_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(KERAS_CONFIG)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["thin", "block1_conv1"]
        group["thin/thin/kernel"] = VALUES
        group["block1_conv1/block1_conv1/kernel"] = VALUES
        file["optimizer_weights/adam/m"] = VALUES
    with open_weights(tmp_path / "a.h5") as weights:
        assert set(weights.names()) == {"thin/depthwise_kernel", "block1_conv1/kernel"}
        assert weights.other_entries == ("optimizer_weights/adam/m",)


@pytest.mark.parametrize(
    ("layer", "path", "name"),
    [
        ("block1_conv1", "block1_conv1/kernel:0", "block1_conv1/kernel"),
        ("block1_conv1", "block1_conv1_W_1:0", "block1_conv1/kernel"),
        ("block1_conv1", "block1_conv1_b_1:0", "block1_conv1/bias"),
        ("bn", "bn_running_std_1:0", "bn/moving_variance"),
        ("out", "sequential/out/bias", "out/bias"),
        ("conv2d_1", "conv2d_1_2/kernel:0", "conv2d_1/kernel"),
        ("resnet50", "conv1_conv/kernel:0", "resnet50/conv1_conv/kernel"),
        ("bi", "bi/forward_lstm/lstm_cell/kernel:0", "bi/forward_lstm/lstm_cell/kernel"),
        ("kernel", "kernel/kernel:0", "kernel/kernel"),
        ("w", "w:0", "w/w"),
    ],
)
def test_named_variables(layer, path, name):
    assert named_path(layer, path) == name


@pytest.mark.parametrize(
    ("kind", "count", "config", "expected"),
    [
        ("conv2d", 1, None, ("kernel",)),
        ("separable_conv2d", 2, None, ("depthwise_kernel", "pointwise_kernel")),
        ("batch_normalization", 4, None, ("gamma", "beta", "moving_mean", "moving_variance")),
        ("batch_normalization", 3, None, ("0", "moving_mean", "moving_variance")),
        ("batch_normalization", 2, None, ("moving_mean", "moving_variance")),
        (
            "batch_normalization",
            3,
            {"center": False},
            ("gamma", "moving_mean", "moving_variance"),
        ),
        ("batch_normalization", 1, None, ("0",)),
        ("layer_normalization", 1, {"scale": False}, ("beta",)),
        ("layer_normalization", 1, None, ("0",)),
        ("my_layer", 2, None, ("0", "1")),
        ("dense", 3, None, ("0", "1", "2")),
    ],
)
def test_numbered_variables(kind, count, config, expected):
    assert variable_names(kind, count, config) == expected


def test_layers_of_one_name_fall_back_to_their_paths(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for group in ("blocks/dense", "blocks/dense_1"):
            place = file.create_group(f"{group}/vars")
            place.attrs["name"] = "same"
            place["0"] = VALUES
    assert names(tmp_path / "a.weights.h5") == {"blocks/dense/vars/0", "blocks/dense_1/vars/0"}


def hostile(path: Path, how: str) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group["0"] = VALUES
        if how == "external link":
            group["1"] = h5py.ExternalLink("/etc/passwd", "/")
        elif how == "soft link":
            group["1"] = h5py.SoftLink("/layers/dense/vars/0")
        elif how == "cycle":
            group["1"] = file["layers"]
        elif how == "virtual":
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
            group.create_virtual_dataset("1", layout)
        elif how == "external storage":
            group.create_dataset("1", (4,), np.float32, external=[("/etc/passwd", 0, 16)])
        elif how == "text":
            group["1"] = "text"
        elif how == "object":
            group.create_dataset("1", (2,), h5py.vlen_dtype(np.float32))
        elif how == "reference":
            group.create_dataset("1", (2,), h5py.ref_dtype)
        elif how == "record":
            group["1"] = np.zeros(2, [("a", "f4")])
        elif how == "compressed":
            group.create_dataset("1", data=np.zeros(10**6), compression="gzip")
        elif how == "unallocated":
            group.create_dataset("1", (2**40,), np.float32)
        elif how == "chunk":
            group.create_dataset("1", (1,), np.float32, chunks=(2**28,), maxshape=(None,))
        elif how == "empty":
            group.create_dataset("1", data=h5py.Empty("f4"))
        elif how == "type":
            group["1"] = np.dtype("f4")
        elif how == "deep":
            file.create_group("/".join(["a"] * 200))


HOSTILE = {
    "external link": "link to another place or file",
    "soft link": "link to another place or file",
    "cycle": "two names",
    "virtual": "virtual",
    "external storage": "other files",
    "text": "dtype",
    "object": "dtype",
    "reference": "dtype",
    "record": "dtype",
    "compressed": "h5repack",
    "unallocated": "file can hold at most",
    "chunk": "h5repack",
    "empty": "no values",
    "type": "neither a group nor a dataset",
    "deep": "deeper than",
}


@pytest.mark.parametrize(
    ("how", "suffix"), [*((how, ".h5") for how in HOSTILE), ("text", ".keras")]
)
def test_what_a_keras_file_never_has_is_refused_at_opening(tmp_path, how, suffix):
    path = tmp_path / f"a{suffix}"
    hostile(tmp_path / "a.h5", how)
    if suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
            archive.write(tmp_path / "a.h5", "model.weights.h5")
    with pytest.raises(UserError, match=f"{path}: .*{HOSTILE[how]}"):
        open_weights(path)


def archive(path: Path, **members: str | bytes) -> Path:
    write_keras(path)
    with zipfile.ZipFile(path) as old:
        content: dict[str, str | bytes] = {name: old.read(name) for name in old.namelist()}
    content |= {name.replace("_", "."): text for name, text in members.items()}
    with zipfile.ZipFile(path, "w") as new:
        for name, text in content.items():
            new.writestr(name, text)
    return path


def test_the_model_in_an_archive_is_never_made(tmp_path):
    ran = tmp_path / "ran"
    code = f"lambda x: open({str(ran)!r}, 'w')"
    layer = {"class_name": "Lambda", "config": {"name": "evil", "function": code}}
    model = {"class_name": "Functional", "config": {"layers": [layer]}}
    assert len(names(archive(tmp_path / "a.keras", config_json=json.dumps(model)))) == 7
    assert not ran.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 10**5, '{"config": 1}' + " ", '{"config": {"layers": [1, null]}}']
)
def test_a_damaged_config_is_refused_or_tells_nothing(tmp_path, text):
    path = archive(tmp_path / "a.keras", config_json=text)
    if '"config"' in text:
        assert len(names(path)) == 7
        return
    with pytest.raises(UserError, match=f"{path}: .*JSON"):
        open_weights(path)


def test_the_weights_of_an_archive_are_checked_whole(tmp_path):
    path = write_keras(tmp_path / "a.keras")
    content = bytearray(path.read_bytes())
    at = content.index(KERAS_ARRAYS["block1_conv1/kernel"].tobytes())
    content[at + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="'model.weights.h5' is damaged"):
        open_weights(path)


def test_a_deflated_archive_opens(tmp_path):
    path = write_keras(tmp_path / "a.keras")
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert names(tmp_path / "b.keras") == set(KERAS_ARRAYS)


def test_another_hdf5_file_opens_by_its_paths(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["some/where"] = VALUES.astype(">f4")
    with open_weights(tmp_path / "a.hdf5") as weights:
        assert weights.spec("some/where") == ((4,), np.dtype("=f4"))
        np.testing.assert_array_equal(weights.read("some/where"), VALUES)


def test_an_old_file_opens_without_its_names_attribute_in_one_piece(tmp_path):
    path = write_keras_h5(tmp_path / "a.h5", {"dense/kernel": VALUES})
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"] = [b"dense"]
    assert names(path) == {"dense/kernel"}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(60)", "does not finish within 0.5 s"),
        ("import os; os.abort()", "crashes on this file .exit status -6"),
        ("raise SystemExit(3)", "crashes on this file .exit status 3"),
        ("print('no JSON')", "JSON"),
    ],
)
def test_a_library_that_hangs_or_crashes_is_a_user_error(tmp_path, monkeypatch, program, message):
    path = write_weights_h5(tmp_path / "a.weights.h5")
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(hdf5_catalog, "__file__", str(tmp_path / "program.py"))
    monkeypatch.setattr(hdf5_file, "_SECONDS", 0.5 if "sleep" in program else 60)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        open_weights(path)


def test_values_in_the_header_and_none_at_all_are_distinguished(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32BE, space, compact)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, VALUES)
        file["empty"] = np.zeros((0, 3))
    with open_weights(tmp_path / "a.h5") as weights:
        np.testing.assert_array_equal(weights.read("w"), VALUES)
        assert weights.read("empty").shape == (0, 3)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("w", (4,), np.float32)
        file["filler"] = np.zeros(100)
    with pytest.raises(UserError, match="never written"):
        open_weights(tmp_path / "b.h5")


def test_what_a_damaged_archive_calls_a_member_is_not_repeated_at_length(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}" + " " * 50_000)
        archive.writestr("model.weights.h5", b"")
    content = bytearray(path.read_bytes())
    content[26:28] = (40_000).to_bytes(2, "little")  # length of the name in the local header
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.keras") as error:
        open_weights(path)
    assert len(str(error.value)) < 1_000


def test_the_names_of_a_base_inside_a_transfer_model(tmp_path):
    values = np.arange(4, dtype=np.float32)
    with h5py.File(tmp_path / "transfer.h5", "w") as file:
        top = file.create_group("model_weights")
        top.attrs["layer_names"] = [b"rescaling", b"mobilenetv2_1.00_160", b"dense"]
        for place in (
            "mobilenetv2_1.00_160/Conv1/kernel:0",
            "mobilenetv2_1.00_160/bn_Conv1/gamma:0",
            "dense/dense/kernel:0",
        ):
            top[place] = values
        file["optimizer_weights/Adam/m/dense/kernel:0"] = values
    with open_weights(tmp_path / "transfer.h5") as weights:
        assert set(weights.names()) == {
            "mobilenetv2_1.00_160/Conv1/kernel", "mobilenetv2_1.00_160/bn_Conv1/gamma",
            "dense/kernel",
        }  # fmt: skip
        np.testing.assert_array_equal(weights.read("mobilenetv2_1.00_160/Conv1/kernel"), values)
