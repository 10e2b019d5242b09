"""Detects the format of a file by its content, for errors about files with a wrong suffix."""

from __future__ import annotations

import zipfile
from pathlib import Path

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NO_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull' to get the file itself"),
    (b"<!doctype html", "a web page: the download went to a page instead of the file"),
    (b"<html", "a web page: the download went to a page instead of the file"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
)


def detect(path: Path) -> tuple[str, str] | None:
    """Detects the format of a file.

    Returns:
      (format, description), where the format is one of ``torch``, ``numpy``, ``keras``, ``hdf5``,
      ``safetensors``, or '' for a file that has no weights in its present form; None if the format
      is unknown.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
        size = file.seek(0, 2)
    for begin, words in _NO_WEIGHTS:
        if head.lower().startswith(begin):
            return "", words
    if head.startswith(HDF5_MAGIC):
        return "hdf5", "an HDF5 file (Keras: .h5)"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    # This test precedes that of pickles, because the length may begin with the bytes of a pickle.
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= size - 8:
        return "safetensors", "a safetensors file (.safetensors)"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch", "a pickle (PyTorch: .pth)"
    if head[257:262] == b"ustar":
        return "", "a tar archive: unpack it first"
    if head.startswith(b"\x93NUMPY"):
        return "", "a single .npy array without a name: put it into a .npz"
    return None


def _zip(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged archive may raise any exception; its reader reports the damage
        return None
    if "model.weights.h5" in names:
        return "keras", "an archive of Keras 3 (.keras)"
    if any(name.endswith("data.pkl") for name in names):
        return "torch", "a zip archive of PyTorch (.pth)"
    if any(name.endswith(".npy") for name in names):
        return "numpy", "a zip of NumPy arrays (.npz or .zip)"
    return None
