"""Damaged weight files of every format: a clear error or the right values, nothing else."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from format_samples import (
    ARRAYS,
    KERAS_CONFIG,
    NEEDS_H5PY,
    SAMPLES,
    npy,
    write_keras,
    write_orbax,
    write_safetensors,
    write_sharded,
)
from fuzz_watch import QUICK, apart, counts, fuzz, survey
from hypothesis import strategies as st

from finetune_jax.pretrained.formats import hdf5_catalog, hdf5_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name"),
]
# --- Bytes ----------------------------------------------------------------------------------------

_NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
]
_CHANGE = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(0, 7)),
    st.tuples(st.just("set"), st.integers(0, 2**20), st.integers(0, 255)),
    st.tuples(st.just("number"), st.integers(0, 2**20), st.sampled_from(_NUMBERS)),
    st.tuples(st.just("cut"), st.integers(0, 2**20), st.integers(1, 64)),
    st.tuples(st.just("repeat"), st.integers(0, 2**20), st.integers(1, 64)),
    st.tuples(st.just("end"), st.integers(0, 2**20), st.just(0)),
    st.tuples(st.just("nan"), st.integers(0, 2**20), st.just(0)),
)
CHANGES = st.lists(_CHANGE, min_size=1, max_size=4)


def changed(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(content)
    for kind, place, value in changes:
        # Half of the positions are at nonzero bytes, because HDF5 files are mostly zeros.
        filled = [i for i, byte in enumerate(out) if byte] if place % 2 else []
        at = filled[place // 2 % len(filled)] if filled else place % max(len(out), 1)
        if kind == "flip" and out:
            out[at] ^= 1 << value
        elif kind == "set" and out:
            out[at] = value
        elif kind == "number":
            width = 8 if value >= 2**32 else 4 if value > 255 else 1
            out[at : at + width] = value.to_bytes(width, "big" if place % 3 == 0 else "little")
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "repeat":
            out[at:at] = out[at : at + value]
        elif kind == "end":
            del out[at:]
        elif kind == "nan":
            out[at : at + 4] = b"\x00\x00\xc0\x7f"
    return bytes(out)


# Lists HDF5 files like `hdf5_file.launch`, but forks instead of starting a new Python.
_CATALOGUER = """
import os, runpy, signal, sys
import h5py, numpy
answer = runpy.run_path(sys.argv[1])["answer"]
for line in sys.stdin:
    receiver, sender = os.pipe()
    process = os.fork()
    if not process:
        signal.alarm(4)
        with open(sender, "w") as out:
            out.write(answer(line))
        os._exit(0)
    os.close(sender)
    with open(receiver) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(code, text, flush=True)
"""


@pytest.fixture(scope="module")
def cataloguer():
    """Has the result of `hdf5_file.launch`."""
    if importlib.util.find_spec("h5py") is None:
        yield None
        return
    command = [sys.executable, "-P", "-c", _CATALOGUER, hdf5_catalog.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def launch(arguments: str) -> tuple[int | None, bytes]:
            process.stdin.write(arguments.encode() + b"\n")
            process.stdin.flush()
            code, _, output = process.stdout.readline().partition(b" ")
            return (None if int(code) == -signal.SIGALRM else int(code)), output

        yield launch
        process.stdin.close()


def _mutate_bytes(folder: Path, name: str, examples: int, launch: Any = None) -> None:
    hdf5_file.launch = launch or hdf5_file.launch  # in this process only
    path = _write(name, folder)
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in root.rglob("*") if file.is_file())
    contents = [file.read_bytes() for file in files]
    assert survey(path)

    def check(draw: tuple[int, list[tuple[str, int, int]]]) -> None:
        number = draw[0] % len(files)
        files[number].write_bytes(changed(contents[number], draw[1]))
        survey(path)
        files[number].write_bytes(contents[number])

    fuzz(examples, st.tuples(st.integers(0, 1000), CHANGES), check)


ORBAX = {"orbax": {}, "orbax without a database": {"use_ocdbt": False}}


def _write(name: str, folder: Path) -> Path:
    if name in ORBAX:
        return write_orbax(folder / "checkpoint", **ORBAX[name])
    return SAMPLES[name][0](folder)


@counts
@pytest.mark.parametrize("name", SAMPLES)
def test_changed_bytes(tmp_path, cataloguer, name, examples):
    if name in NEEDS_H5PY:
        pytest.importorskip("h5py")
    apart(_mutate_bytes, tmp_path, name, examples, cataloguer)


# TensorStore has threads, which a fork would lose.
@counts
def test_changed_bytes_of_an_orbax_folder(tmp_path, examples):
    for name in ORBAX if examples != QUICK else ["orbax"]:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        apart(_mutate_bytes, folder, name, examples, method="spawn")


# --- JSON: headers, indices, configs, metadata ----------------------------------------------------

_HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 2**70, 1e308, float("nan"), "", "..", "../x", "/etc/passwd",
    "a/b", "x" * 5000, "\ud800", "F32", "float32", "O", [], {}, [[]], [2**40], [0, 2**62, 2**62],
    [-1], [True], ["a"], {"a": {"a": {}}}, "__import__('evil')", "<f4", "|O", [0, 2**40],
]  # fmt: skip
JSON_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["value", "delete", "rename", "add"]),
        st.integers(0, 10**6),
        st.sampled_from(range(len(_HOSTILE_VALUES))),
    ),
    min_size=1,
    max_size=3,
)


def changed_json(content: Any, changes: list[tuple[str, int, int]]) -> bytes:
    content = copy.deepcopy(content)
    for kind, place, which in changes:
        spots = []
        waiting = [content]
        while waiting:
            node = waiting.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node))
            spots += [(node, key) for key in keys]
            waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
        if not spots:
            break
        node, key = spots[place % len(spots)]
        value = copy.deepcopy(_HOSTILE_VALUES[which])
        if kind == "delete":
            del node[key]
        elif kind == "value" or isinstance(node, list):
            node[key] = value
        elif kind == "rename":
            node[str(value)] = node.pop(key)
        else:
            node[str(value)] = value
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _safetensors(folder: Path) -> tuple[Path, Any, Callable[[bytes], None]]:
    path = write_safetensors(folder / "a.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")

    def put(header: bytes) -> None:
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])

    return path, json.loads(content[8 : 8 + length]), put


def _index(folder: Path, suffix: str) -> tuple[Path, Any, Callable[[bytes], None]]:
    path = write_sharded(folder / "sharded", suffix)
    return path, json.loads(path.read_bytes()), lambda content: _put(path, content)


def _config(folder: Path) -> tuple[Path, Any, Callable[[bytes], None]]:
    path = write_keras(folder / "a.keras", named=False)
    with zipfile.ZipFile(path) as archive:
        others = {n: archive.read(n) for n in archive.namelist() if n != "config.json"}

    def put(content: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", content)
            for name, other in others.items():
                archive.writestr(name, other)

    return path, KERAS_CONFIG, put


def _orbax(folder: Path, name: str) -> tuple[Path, Any, Callable[[bytes], None]]:
    path = write_orbax(folder / "checkpoint", use_ocdbt=False)
    file = path / name
    return path, json.loads(file.read_bytes()), lambda content: _put(file, content)


def _artifact(folder: Path) -> tuple[Path, Any, Callable[[bytes], None]]:
    write_safetensors(folder / "model.safetensors")
    card = {"contents": "all", "base": {"file": "a", "sha256": "b"}}
    file = folder / "artifact.json"
    _put(file, json.dumps(card).encode())
    return folder, card, lambda content: _put(file, content)


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


JSON_FILES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "header of safetensors": (_safetensors, ()),
    "index of safetensors": (_index, (".safetensors",)),
    "index of PyTorch": (_index, (".bin",)),
    "config of Keras": (_config, ()),
    "artifact": (_artifact, ()),
    "tree of Orbax": (_orbax, ("_METADATA",)),
    "array of Orbax": (_orbax, ("params.kernel/.zarray",)),
}


def _mutate_json(folder: Path, name: str, examples: int, launch: Any = None) -> None:
    hdf5_file.launch = launch or hdf5_file.launch
    make, arguments = JSON_FILES[name]
    path, content, put = make(folder, *arguments)
    assert survey(path)

    def check(changes: list[tuple[str, int, int]]) -> None:
        put(changed_json(content, changes))
        survey(path)

    fuzz(examples, JSON_CHANGES, check)


@counts
@pytest.mark.parametrize("name", JSON_FILES)
def test_changed_json(tmp_path, cataloguer, name, examples):
    if name == "config of Keras":
        pytest.importorskip("h5py")
    if "Orbax" in name:
        if examples == QUICK and name != "array of Orbax":
            pytest.skip("starting TensorStore takes longer than the rest; see -m slow")
        apart(_mutate_json, tmp_path, name, examples, method="spawn")
    else:
        apart(_mutate_json, tmp_path, name, examples, cataloguer)


def _crash(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_code(folder: Path) -> None:
    os.system("true")


def _raise(folder: Path) -> None:
    raise KeyError("escaped")


@pytest.mark.parametrize(
    ("work", "message"),
    [(_crash, "died with -9"), (_run_code, "ran what a file asked for"), (_raise, "escaped")],
)
def test_the_restricted_process_finds_violations(tmp_path, work, message):
    with pytest.raises(pytest.fail.Exception, match=message):
        apart(work, tmp_path)


def test_the_survey_finds_wrong_values(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", npy(ARRAYS["count"]))
    assert survey(path)
    path.write_bytes(b"no archive")
    assert not survey(path)
