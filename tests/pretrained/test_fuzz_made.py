"""Hostile archives and pickles: they give a clear error or the right values."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from format_samples import (
    flax_extension,
)
from fuzz_watch import apart, counts, fuzz, survey
from hypothesis import strategies as st
from torch_writer import Storage, Tensor, tensor, write_legacy, write_zip

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name"),
]

_SIZES = st.sampled_from([0, 1, 2, 3, 2**20, 2**31, 2**40, 2**62, 2**63, -1])
_SHAPES = st.lists(_SIZES, max_size=4).map(tuple)
_TEXTS = st.sampled_from(
    ["w", "w/kernel", "../w", "/w", "", ".", "a\\..\\b", "\0", "é", "\u202e", "x" * 70000, "opt/w"]
)
_MEMBERS = st.lists(
    st.tuples(
        _TEXTS,
        st.sampled_from(
            ["'<f4'", "'|O'", "'|V2'", "'>f8'", "'<U9'", "[('a','O')]", "evil", "'|b1'"]
        ),
        _SHAPES,
        st.booleans(),
        st.sampled_from([0, 4, 8, 16, 2**22]),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    ),
    min_size=1,
    max_size=4,
)


def _numpy(folder: Path, examples: int) -> None:
    path = folder / "a.npz"

    def check(members: list[Any]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, descr, shape, fortran, length, method in members:
                text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
                head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
                member = zipfile.ZipInfo(f"{name}.npy"[-65000:] or "x")
                member.compress_type = method
                archive.writestr(member, head + bytes(length))
        survey(path)

    fuzz(examples, _MEMBERS, check)


class Evil:
    """An object whose pickle contains a call."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


_CALLS: list[tuple[Any, ...]] = [
    (os.system, ("true",)),
    (exec, ("import evil",)),
    (eval, ("__import__('evil')",)),
    (__import__, ("evil",)),
    (getattr, ("a", "join")),
    (bytearray, (2**40,)),
    (np.zeros, (2**40,)),
    (dict.fromkeys, (range(2**40),)),
    (io.BytesIO, (b"",)),
]
_TENSORS = st.tuples(st.sampled_from([0, 1, 5, -1, 2**62, 2**70, 2.0, None]), _SHAPES, _SHAPES)
_CONTENT = st.lists(
    st.tuples(_TEXTS, st.one_of(_TENSORS, st.sampled_from(range(len(_CALLS))), st.none())),
    min_size=1,
    max_size=4,
)


def _torch(folder: Path, examples: int) -> None:
    writers = {folder / "a.pth": write_zip, folder / "a.th": write_legacy}
    storage = Storage("shared", np.arange(4, dtype=np.float32))

    def check(draw: tuple[list[Any], bool]) -> None:
        content: dict[str, Any] = {}
        for name, value in draw[0]:
            if isinstance(value, int):
                content[name] = Evil(_CALLS[value])
            elif value is None:
                content[name] = tensor(f"own{len(content)}", np.ones((2, 2), np.float32))
            else:
                content[name] = Tensor(storage, *value)
        content = {"model": content, "self": [content, content]} if draw[1] else content
        evil = any(isinstance(value, int) for _, value in draw[0])
        for path, write in writers.items():
            write(path, content)
            went_well = survey(path)
            assert not (went_well and evil and any(isinstance(v, Evil) for v in content.values()))

    fuzz(examples, st.tuples(_CONTENT, st.booleans()), check)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=20),
    _TEXTS,
    st.just(np.arange(3, dtype=np.float32)),
    st.builds(
        lambda shape, dtype, values, code: msgpack.ExtType(
            code, msgpack.packb((shape, dtype, values))
        ),
        st.lists(st.sampled_from([0, 1, 2, 2**31, 2**62, 2**64 - 1, -1]), max_size=4),
        st.sampled_from(["float32", "bfloat16", "O", "object", "", "U9", "V2", "float8_e4m3fn"]),
        st.sampled_from([b"", bytes(4), bytes(8)]),
        st.sampled_from([0, 1, 2, 3, 127]),
    ),
    st.builds(lambda data: msgpack.ExtType(1, data), st.binary(max_size=20)),
)
_KEYS = st.one_of(_TEXTS.filter(lambda t: len(t) < 99), st.integers(0, 3), st.just("shape"))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(_KEYS, inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["__msgpack_chunked_array__", "shape", "chunks"]), inner, min_size=1
        ),
    ),
    max_leaves=12,
)


def _flax(folder: Path, examples: int) -> None:
    path = folder / "a.msgpack"

    def check(content: Any) -> None:
        path.write_bytes(msgpack.packb(content, default=flax_extension))
        survey(path)

    fuzz(examples, st.dictionaries(_KEYS, _TREES, max_size=3), check)


@counts
@pytest.mark.parametrize("work", [_numpy, _torch, _flax])
def test_files_made_with_bad_intent(tmp_path, work, examples):
    apart(work, tmp_path, examples)
