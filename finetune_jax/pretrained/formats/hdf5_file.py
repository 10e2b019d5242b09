"""HDF5 files: the C library runs in a separate process, and this process only reads bytes.

On a damaged file the library can hang (one changed bit in a heap is enough) or crash. Therefore
another process, under a time limit, lists the position of every dataset, and the values are read
without the library.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats import hdf5_catalog
from finetune_jax.pretrained.formats.limits import (
    DTYPES,
    MAX_DEPTH,
    MAX_TENSORS,
    check_fits,
    parse_json,
    size_of,
)
from finetune_jax.pretrained.formats.weights import Spec

_SECONDS = 60


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``vars/2`` before ``vars/10``."""
    parts = re.split(r"([0-9]{1,9})", name)
    return [(0, int(p)) if i % 2 else (1, p) for i, p in enumerate(parts)]


class Hdf5File:
    """The datasets of an HDF5 file by path.

    Args:
      path: the file, which stays open until `close`.
      begin: offset in the file at which the HDF5 content begins.
      size: number of bytes of the HDF5 content; None for all bytes after `begin`.

    Raises:
      UserError: the file is damaged or has a link to another place; or a dataset is virtual, in
        chunks, compressed, in other files, beyond the end of the file, or has no numbers.

    Attributes:
      specs: (shape, dtype) by path of the dataset, in natural order.
      attributes: names of the attributes by path of the group; '' is the root.
      texts: the attributes ``name`` and ``model_config`` of each group, if they are texts.
    """

    def __init__(self, path: Path, begin: int = 0, size: int | None = None) -> None:
        self._begin = begin
        self._size = path.stat().st_size - begin if size is None else size
        answer = _ask(path, begin, self._size)
        self.attributes: dict[str, list[str]] = answer["attributes"]
        self.texts: dict[str, dict[str, str]] = answer["texts"]
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, tuple[np.dtype, int | bytes]] = {}
        for name in sorted(answer["datasets"], key=natural):
            self._add(name, *answer["datasets"][name])
        self._file = path.open("rb", buffering=0)

    def _add(self, name: str, sizes: Any, kind: Any, offset: Any, values: Any) -> None:
        shape, stored = tuple(sizes), np.dtype(kind)
        if stored == np.dtype("V2"):  # the type that h5py writes for bfloat16
            stored = DTYPES["bfloat16"]
        dtype = stored.newbyteorder("=")
        if dtype.name not in DTYPES:
            raise UserError(f"dataset {name!r} has dtype {stored}; expected numbers or bools")
        check_fits(name, shape, dtype, self._size)
        length = size_of(shape, dtype)
        held: int | bytes = 0 if offset is None else offset
        if values is not None:
            held = base64.b64decode(values)
        elif offset is None and length:
            raise UserError(f"dataset {name!r} has no values: it was created but never written")
        end = len(held) if isinstance(held, bytes) else self._size - held
        if end < length:
            raise UserError(f"dataset {name!r} exceeds the end of the file: truncated or damaged")
        self.specs[name], self._places[name] = (shape, dtype), (stored, held)

    def read(self, name: str) -> np.ndarray:
        """The values of a dataset, C-ordered, in this machine's byte order.

        Raises:
          UserError: the file has become shorter since it was opened.
        """
        shape, dtype = self.specs[name]
        stored, held = self._places[name]
        if isinstance(held, bytes):
            flat = np.frombuffer(bytearray(held), stored)
        else:
            self._file.seek(self._begin + held)
            flat = np.fromfile(self._file, stored, size_of(shape, dtype) // dtype.itemsize)
        if flat.nbytes != size_of(shape, dtype):
            raise UserError("the file has become shorter since it was opened")
        return flat.astype(dtype, copy=False).reshape(shape)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _ask(path: Path, begin: int, size: int) -> dict[str, Any]:
    """The catalog of a file; UserError if the library refuses the file, hangs or crashes."""
    arguments = {
        "path": str(path),
        "begin": begin,
        "size": size,
        "max_entries": 2 * MAX_TENSORS,
        "max_depth": MAX_DEPTH,
    }
    code, output = launch(json.dumps(arguments))
    if code is None:
        raise UserError(f"the HDF5 library does not finish within {_SECONDS} s: damaged")
    if code:
        raise UserError(f"the HDF5 library crashes on this file (exit status {code}): damaged")
    answer = parse_json(output)
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return answer


def launch(arguments: str) -> tuple[int | None, bytes]:
    """Runs `hdf5_catalog`; returns (exit status, or None after the time limit; its output)."""
    # -P keeps the program's folder, whose modules have names of Python modules, out of sys.path.
    command = [sys.executable, "-P", hdf5_catalog.__file__, arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, b""
    return done.returncode, done.stdout
