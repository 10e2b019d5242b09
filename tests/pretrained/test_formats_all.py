"""All formats give the same arrays for the same weights, lazily, with the same errors."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from format_samples import ARRAYS, NEEDS_H5PY, ORBAX_ARRAYS, SAMPLES, write_npz, write_orbax

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights


@pytest.fixture(params=SAMPLES)
def sample(request, tmp_path):
    if request.param in NEEDS_H5PY:
        pytest.importorskip("h5py")
    write, arrays = SAMPLES[request.param]
    return write(tmp_path), arrays()


def same(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open_weights(path) as weights:
        assert set(weights.names()) == set(arrays)
        for name, array in arrays.items():
            assert weights.spec(name) == (array.shape, array.dtype), name
            found = weights.read(name)
            assert (found.shape, found.dtype) == (array.shape, array.dtype), name
            assert found.tobytes() == array.tobytes(), name
            assert found.flags.c_contiguous, name


def test_every_format_gives_the_arrays_that_were_written(sample):
    same(*sample)


def test_a_tensor_that_is_not_there_is_named_with_its_nearest(sample):
    path, arrays = sample
    name = next(iter(arrays))
    with open_weights(path) as weights, pytest.raises(UserError, match="Did you mean"):
        weights.read(f"{name}x")


def test_the_message_about_a_wrong_suffix_names_the_format(sample, tmp_path):
    path, _ = sample
    known = {".npz", ".safetensors", ".pth", ".h5", ".keras", ".msgpack"}
    kinds = {".th": ".pth", ".bin": ".pth", ".zip": ".npz"}
    if path.suffix == ".json" or path.suffix == ".msgpack":
        pytest.skip("JSON and msgpack have no mark at their beginning")
    for suffix in known - {kinds.get(path.suffix, path.suffix)}:
        wrong = tmp_path / f"renamed{suffix}"
        shutil.copy(path, wrong)
        message = r"in spite of its suffix; its content is .*\(.*\.\w+"
        with pytest.raises(UserError, match=message):
            open_weights(wrong)
    unknown = tmp_path / "renamed.data"
    shutil.copy(path, unknown)
    with pytest.raises(UserError, match="unknown weight format '.data'.* Its content is"):
        open_weights(unknown)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x93NUMPY\x01\x00", "single .npy"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".msgpack", ".h5", ".keras"])
def test_files_without_weights_are_reported(tmp_path, suffix, content, message):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_weights(path)


def test_sha256_is_the_files_or_that_of_all_files(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    with open_weights(path) as weights:
        assert weights.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    folder, _ = SAMPLES["sharded.safetensors"]
    index = folder(tmp_path)
    with open_weights(index) as weights:
        before = weights.sha256()
        assert len(weights.files) == 3
    index.write_text(index.read_text() + "\n")
    with open_weights(index) as weights:
        assert weights.sha256() != before


def test_a_folder_opens_by_what_it_holds(tmp_path):
    index = SAMPLES["sharded.safetensors"][0](tmp_path)
    same(index.parent, ARRAYS)
    flax = tmp_path / "flax"
    flax.mkdir()
    shutil.move(SAMPLES["flax.msgpack"][0](tmp_path), flax / "flax_model.msgpack")
    same(flax, ARRAYS)
    single = tmp_path / "single"
    single.mkdir()
    write_npz(single / "any.npz")
    same(single, ARRAYS)
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a.npz", "b.npz"):
        write_npz(several / name)
    with pytest.raises(UserError, match="name one of its weight files: a.npz, b.npz"):
        open_weights(several)


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}])
def test_an_orbax_folder_gives_its_leaves(tmp_path, options):
    same(write_orbax(tmp_path / "checkpoint", **options), ORBAX_ARRAYS)
