"""Hostile weight files of every format: a clear error or honest values, and nothing else.

Each batch of mutated files is opened in a process of its own, with a limit on its memory, an alarm
for each file, and a hook that refuses to start programs, connect or write. A crash of a C library
then fails the test instead of ending it.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from format_samples import (
    ARRAYS,
    KERAS_CONFIG,
    NEEDS_H5PY,
    SAMPLES,
    flax_extension,
    npy,
    write_keras,
    write_orbax,
    write_safetensors,
    write_sharded,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch_writer import Storage, Tensor, tensor, write_legacy, write_zip

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats import hdf5_catalog, hdf5_file, open_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name"),
]
SECONDS_PER_FILE = 20
MEMORY = 2**29  # bytes on top of what the process has when it starts
QUICK, LONG = 25, 5000
counts = pytest.mark.parametrize(
    "examples", [pytest.param(QUICK, id="quick"), pytest.param(LONG, marks=pytest.mark.slow)]
)


# --- A process that may only read -----------------------------------------------------------------


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        os._exit(99)
    if event == "import" and arguments[0] == "evil":
        os._exit(99)


def _serve(work: Callable[..., None], arguments: tuple[Any, ...], room: int, answer: Any) -> None:
    try:
        np.zeros(2**20)  # what the first allocation brings with it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.addaudithook(_forbid)
        work(*arguments)
        answer.send("")
    except BaseException:
        answer.send(traceback.format_exc()[-6000:])


def apart(work: Callable[..., None], *arguments: Any, method: str = "fork") -> None:
    """Runs `work` in another process; fails with what it raised, or with how it died."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    # TensorStore's threads, the reason to spawn, reserve addresses that they never use.
    room = 2**35 if method == "spawn" else 2 * MEMORY
    process = context.Process(target=_serve, args=(work, arguments, room, sender))
    process.start()
    sender.close()
    try:
        message = receiver.recv()
    except EOFError:
        message = None
    process.join()
    if message is None:
        reasons = {99: "ran what a file asked for", -signal.SIGALRM: "hung"}
        how = reasons.get(process.exitcode, f"died with {process.exitcode}")
        pytest.fail(f"the reader {how}; the file is {arguments[0]}")
    if message:
        pytest.fail(message, pytrace=False)


def fuzz(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Runs `check` on draws, each under an alarm that ends the process."""

    # Explained and shrunk failures are worth their time only to a person who waits for them.
    phases = [Phase.generate] if examples == QUICK else [Phase.generate, Phase.shrink]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == QUICK,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    @given(strategy)
    def one(value: Any) -> None:
        signal.alarm(SECONDS_PER_FILE)
        check(value)
        signal.alarm(0)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"reading took {grown} bytes"


# --- What must hold of any file -------------------------------------------------------------------


def honest(path: Path) -> dict[str, np.ndarray] | None:
    """What the format's own reader gives; None if it refuses, or if there is none here."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        if path.suffix == ".msgpack":
            from flax.serialization import msgpack_restore

            found: dict[str, np.ndarray] = {}
            waiting = [("", msgpack_restore(path.read_bytes()))]
            while waiting:
                prefix, node = waiting.pop()
                for key, value in node.items():
                    if isinstance(value, list):
                        value = dict(enumerate(value))
                    if isinstance(value, dict):
                        waiting.append((f"{prefix}{key}/", value))
                    else:
                        found[f"{prefix}{key}"] = value
            return found
    except Exception:
        return None
    return None


def survey(path: Path) -> bool:
    """Opens and reads everything; True if that went well. Fails on any error but a clear one."""
    root = path if path.is_dir() else path.parent
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    try:
        with open_weights(path) as weights:
            arrays = {}
            for name in weights.names():
                shape, dtype = weights.spec(name)
                assert math.prod(shape) * dtype.itemsize <= max(100 * size, 2**24)
                arrays[name] = array = weights.read(name)
                assert (array.shape, array.dtype) == (shape, dtype)
    except UserError as error:
        assert str(root) in str(error), error
        assert len(str(error)) < 10_000, len(str(error))
        assert "MemoryError" not in str(error), error
        str(error).encode()
        return False
    expected = honest(path)
    for name, array in arrays.items() if expected is not None else ():
        other = np.asarray(expected[name])
        assert array.shape == other.shape, name
        if other.dtype.kind == "V":  # how NumPy reads bfloat16
            other = other.view(array.dtype)
        assert array.tobytes() == other.astype(array.dtype, "C", copy=False).tobytes(), name
    return True


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
        # Half of the places among the bytes that are not zero: HDF5 files are mostly empty.
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


# Lists HDF5 files as `hdf5_file.launch` has it done, but forks instead of starting Python anew.
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
    """Answers as `hdf5_file.launch`."""
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
    hdf5_file.launch = launch or hdf5_file.launch  # in this process alone
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


# TensorStore keeps threads, which a fork would lose.
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


# --- Archives and pickles put together with bad intent --------------------------------------------

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
    """Pickles into a call."""

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
def test_the_watch_itself_notices(tmp_path, work, message):
    with pytest.raises(pytest.fail.Exception, match=message):
        apart(work, tmp_path)


def test_the_survey_itself_notices(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", npy(ARRAYS["count"]))
    assert survey(path)
    path.write_bytes(b"no archive")
    assert not survey(path)
