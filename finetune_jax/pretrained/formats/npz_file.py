"""NumPy archives: ``.npz``, a zip of ``.npy`` members, and a folder of ``.npy`` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import file_errors, is_optimizer
from finetune_jax.pretrained.formats.npy_header import NpyHeader, arrange, read_npy_header
from finetune_jax.pretrained.formats.weights import Spec, Weights
from finetune_jax.pretrained.formats.zip_archive import ZipArchive


def open_npz(path: Path) -> Weights:
    """Opens a ``.npz`` of big_vision, AugReg or BiT, or another zip of ``.npy`` members.

    The name of a tensor is the name of its member without ``.npy``. An optimizer's entries
    (``opt/…``), texts, and members of other formats are listed in `Weights.other_entries`.

    Raises:
      UserError: the archive is damaged, or an array has Python objects.
    """
    with file_errors(path, "NumPy archive"):
        archive = ZipArchive(path)
        headers: dict[str, NpyHeader] = {}
        other_entries: list[str] = []
        try:
            for member in archive.names():
                name = member.removesuffix(".npy")
                if name == member or is_optimizer(name):
                    other_entries.append(name)
                    continue
                with archive.open(member) as stream:
                    header = read_npy_header(name, stream, archive.length(member))
                if header.dtype.kind in "US":
                    other_entries.append(name)
                else:
                    headers[name] = header
        except BaseException:
            archive.close()
            raise

    def read(name: str) -> np.ndarray:
        header, member = headers[name], f"{name}.npy"
        with file_errors(path, "NumPy archive"), archive.open(member) as stream:
            stream.read(header.begin)
            data = bytearray(archive.length(member) - header.begin)
            archive.read_into(stream, member, memoryview(data))
            return arrange(data, header)

    return Weights(path, _specs(headers), read, archive.close, tuple(other_entries))


def open_npy_folder(folder: Path) -> Weights:
    """Opens a folder of ``.npy`` files, which give the names of tensors; ignores subfolders.

    Raises:
      UserError: a file is damaged, has Python objects, or is a link out of the folder.
    """
    headers: dict[str, NpyHeader] = {}
    other_entries: list[str] = []
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.suffix != ".npy":
            other_entries.append(path.name)
            continue
        with file_errors(path, "NumPy array"):
            if path.resolve().parent != folder.resolve() or not path.is_file():
                raise UserError("it is no file of this folder, or a link out of the folder")
            with path.open("rb") as stream:
                header = read_npy_header(path.stem, stream, path.stat().st_size)
        if header.dtype.kind in "US":
            other_entries.append(path.stem)
        else:
            headers[path.stem] = header
            files.append(path)

    def read(name: str) -> np.ndarray:
        path, header = folder / f"{name}.npy", headers[name]
        with file_errors(path, "NumPy array"), path.open("rb") as stream:
            length = path.stat().st_size
            if read_npy_header(name, stream, length) != header:
                raise UserError("it has changed since it was opened")
            data = bytearray(length - header.begin)
            if stream.readinto(data) != len(data):
                raise UserError("it is truncated")
            return arrange(data, header)

    return Weights(
        folder, _specs(headers), read, lambda: None, tuple(other_entries), files=tuple(files)
    )


def _specs(headers: dict[str, NpyHeader]) -> dict[str, Spec]:
    return {name: (header.shape, header.dtype) for name, header in headers.items()}
