"""Weight files: written values are read back, and a bad file raises nothing but UserError."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch_writer import OldTensor, Parameter, Storage, Tensor, tensor, write_legacy, write_zip

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights

WRITERS = {"zip.pt": write_zip, "legacy.th": write_legacy}
ARRAYS = {
    "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "brain": np.linspace(-3, 3, 6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "double": np.array(0.1, np.float64),
    "count": np.array([2**40, -1]),
    "int": np.array([2**20, -1], np.int32),
    "short": np.array([2**10, -1], np.int16),
    "byte": np.array([255, 0], np.uint8),
    "char": np.array([-128, 127], np.int8),
    "mask": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float32),
}


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_weights(path) as weights:
        return {name: weights.read(name) for name in weights.names()}


def write(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind.endswith(".safetensors"):
        save_file(ARRAYS, path)
    else:
        WRITERS[kind](path, OrderedDict((name, tensor(name, a)) for name, a in ARRAYS.items()))
    return path


KINDS = (*WRITERS, "file.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_and_shape_is_read_as_written(tmp_path, kind):
    path = write(tmp_path, kind)
    with open_weights(path) as weights:
        assert set(weights.names()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert weights.spec(name) == (array.shape, array.dtype)
            found = weights.read(name)
            assert (found.shape, found.dtype) == (array.shape, array.dtype)
            assert found.tobytes() == array.tobytes()
        with pytest.raises(UserError, match="Did you mean 'kernel'"):
            weights.read("kernle")


@pytest.mark.parametrize("kind", WRITERS)
def test_strides_offsets_and_shared_storages_are_honoured(tmp_path, kind):
    values = np.arange(20, dtype=np.float32)
    storage = Storage("s", values)
    content = {
        "transposed": Tensor(storage, 0, (5, 4), (1, 5)),
        "every_second": Tensor(storage, 3, (8,), (2,)),
        "parameter": Parameter(Tensor(storage, 10, (2, 5), (5, 1))),
    }
    WRITERS[kind](tmp_path / kind, content)
    found = read_all(tmp_path / kind)
    np.testing.assert_array_equal(found["transposed"], values.reshape(4, 5).T)
    np.testing.assert_array_equal(found["every_second"], values[3:18:2])
    np.testing.assert_array_equal(found["parameter"], values[10:].reshape(2, 5))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (10**12,), (0,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
        (2**70, (0,), (1,)),
        (0, (2.0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, kind, offset, shape, strides):
    bad = Tensor(Storage("s", np.zeros(4, np.float32)), offset, shape, strides)
    WRITERS[kind](tmp_path / kind, {"bad": bad})
    with pytest.raises(UserError, match="tensor 'bad'"):
        open_weights(tmp_path / kind)


def test_old_tensors_and_views_of_storages_are_read(tmp_path):
    values = np.arange(10, dtype=np.float32)
    storage = Storage("root", values, view=("part", 4, 6))
    content = {"w": OldTensor(storage, 2, (2, 2), (2, 1))}
    write_legacy(tmp_path / "old.th", content)
    np.testing.assert_array_equal(read_all(tmp_path / "old.th")["w"], [[6, 7], [8, 9]])


def test_a_big_endian_zip_is_turned(tmp_path):
    content = {name: tensor(name, array) for name, array in ARRAYS.items()}
    write_zip(tmp_path / "big.pt", content, byteorder="big")
    for name, array in read_all(tmp_path / "big.pt").items():
        assert array.tobytes() == ARRAYS[name].tobytes(), name


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_the_state_dict_is_found_and_what_is_beside_it_listed(tmp_path, kind, key):
    path = tmp_path / kind
    inner = {"w": tensor("0", np.ones(2, np.float32)), "version": 3}
    WRITERS[kind](path, {"epoch": 4, key: inner, "rng": tensor("1", np.ones(9))})
    with open_weights(path) as weights:
        assert weights.names() == ("w",)
        assert weights.other_entries == ("'epoch'", "'rng'", f"{key}['version']")


@pytest.mark.parametrize("kind", WRITERS)
def test_state_dicts_in_deeper_containers_are_reached(tmp_path, kind):
    path = tmp_path / kind
    inner = {"w": tensor("0", np.ones(2, np.float32))}
    WRITERS[kind](
        path, {"model": {"model_state": inner, "step": 3}, "ema": {"w": tensor("1", np.ones(3))}}
    )
    with open_weights(path) as weights:
        assert weights.names() == ("w",)
        assert weights.other_entries == ("'ema'", "model['step']")
    WRITERS[kind](path, {"teacher": inner, "epoch": 3})
    with open_weights(path) as weights:
        assert weights.names() == ("w",)
        assert weights.other_entries == ("'epoch'",)


@pytest.mark.parametrize("kind", WRITERS)
def test_integers_of_thousands_of_digits_are_refused_like_others(tmp_path, kind):
    huge = 10**5000
    storage = Storage("s", np.zeros(4, np.float32))
    for content in (
        {"bad": Tensor(storage, 0, (huge,), (1,))},
        {"bad": Tensor(storage, huge, (1,), (1,))},
        {huge: tensor("0", np.ones(2))},
    ):
        WRITERS[kind](tmp_path / kind, content)
        with pytest.raises(UserError, match=str(tmp_path / kind)):
            open_weights(tmp_path / kind)


def test_a_torchscript_program_is_named_as_such(tmp_path):
    path = write(tmp_path, "zip.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript program; save its state_dict"):
        open_weights(path)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no tensors .* found 'epoch'"),
        ([1, 2], "expected a dict of tensors, found a list"),
        ({"state": {0: {"exp_avg": tensor("0", np.ones(1))}}, "param_groups": [{"lr": 1.0}]},
         "the state of an optimizer, without weights"),
        ({"model": {"a": tensor("0", np.ones(1))}, "state_dict": {"a": tensor("1", np.ones(1))}},
         "more than one state dict"),
    ],
)  # fmt: skip
def test_a_file_without_one_state_dict_says_what_it_holds(tmp_path, kind, content, message):
    WRITERS[kind](tmp_path / kind, content)
    with pytest.raises(UserError, match=message):
        open_weights(tmp_path / kind)


class Payload:
    """An object whose pickle contains a call, as in an attacker's file."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "builtins.getattr"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, kind, name):
    sentinel = tmp_path / "ran"
    payload = {
        "os.system": Payload(os.system, f"touch {sentinel}"),
        "builtins.exec": Payload(exec, f"open({str(sentinel)!r}, 'w')"),
        "builtins.getattr": Payload(getattr, 1, "real"),
    }[name]
    WRITERS[kind](tmp_path / kind, {"w": tensor("0", np.ones(2)), "evil": payload})
    with pytest.raises(UserError, match=name.split(".")[1]):
        open_weights(tmp_path / kind)
    assert not sentinel.exists()


def test_building_on_the_stand_ins_changes_nothing_for_the_next_file(tmp_path):
    # GLOBAL, then BUILD with slot state: setattr on whatever `find_class` returned.
    state = b"N}U\x0c__defaults__K\x01s\x86b"
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict"):
        program = b"\x80\x02c" + name + b"\n" + state + b"."
        path = tmp_path / "bad.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
        with pytest.raises(UserError):
            open_weights(path)
    assert set(read_all(write(tmp_path, "zip.pt"))) == set(ARRAYS)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of 4 billion entries
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",  # a byte array of an exabyte
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # an integer of two gigabytes
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f.",  # a frame of an exabyte
    ],
)
def test_a_pickle_cannot_ask_for_memory_beyond_the_file(tmp_path, program):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError, match="pickle"):
        open_weights(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": [0] * 10**5}, protocol=2))
    with pytest.raises(UserError, match="compressed"):
        open_weights(path)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_anywhere_is_a_user_error(tmp_path, kind):
    whole = write(tmp_path, kind).read_bytes()
    path = tmp_path / f"cut{Path(kind).suffix}"
    for length in [*range(0, len(whole), 17), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut"):
            read_all(path)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_flipped_bytes_give_a_user_error_or_arrays(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(write(folder, kind).read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = value
    path = folder / f"flipped{Path(kind).suffix}"
    path.write_bytes(content)
    try:
        with open_weights(path) as weights:
            for name in weights.names():
                array = weights.read(name)
                assert (array.shape, array.dtype) == weights.spec(name)
                assert array.nbytes <= len(content)
    except UserError as error:
        assert str(path) in str(error)


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, "file.safetensors")
    with pytest.raises(UserError, match=r"no such weight file\. Did you mean 'file.safetensors'"):
        open_weights(tmp_path / "fiel.safetensors")
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_weights(tmp_path / "nowhere" / "file.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no weight file"):
        open_weights(tmp_path / "empty" / "file.pt")


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"'.onnx'; expected one of .safetensors, .th, .pt"):
        (tmp_path / "weights.onnx").touch()
        open_weights(tmp_path / "weights.onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_file_and_one_of_another_format_are_distinguished(tmp_path, kind):
    path = tmp_path / kind
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        open_weights(path)
    path.write_bytes(struct.pack("<q", 10) + b"this is no weight file")
    with pytest.raises(UserError, match="not a "):
        open_weights(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="folder"):
        open_weights(path)
