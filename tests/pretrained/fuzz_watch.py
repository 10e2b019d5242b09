"""Opens hostile weight files in a restricted process, and checks what must hold for all files.

Each batch of files is opened in a process of its own, with a limit on its memory, an alarm for each
file, and a hook that refuses to start programs, connect or write. A crash of a C library then fails
the test instead of ending it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats import open_weights

SECONDS_PER_FILE = 20
MEMORY = 2**29  # bytes that the process may allocate after its start
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
        np.zeros(2**20)  # the first allocation has a fixed overhead
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.addaudithook(_forbid)
        work(*arguments)
        answer.send("")
    except BaseException:
        answer.send(traceback.format_exc()[-6000:])


def apart(work: Callable[..., None], *arguments: Any, method: str = "fork") -> None:
    """Runs `work` in another process; raises its exception, or an error if the process died."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    # TensorStore needs a spawned process, because its threads reserve addresses they never use.
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

    # Explaining and shrinking a failure takes long, and is only useful to a waiting person.
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


# --- Properties that must hold for any file -------------------------------------------------------


def honest(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of the format's reference reader; None if it refuses or is not installed."""
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
    """Opens and reads everything; True on success, False after a UserError; fails otherwise."""
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
        if other.dtype.kind == "V":  # NumPy reads bfloat16 as this kind
            other = other.view(array.dtype)
        assert array.tobytes() == other.astype(array.dtype, "C", copy=False).tobytes(), name
    return True
