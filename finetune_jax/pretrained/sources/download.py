"""Downloads files, and keeps a file only if its SHA-256 is the expected one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from finetune_jax.errors import UserError, lacks
from finetune_jax.files import file_digest
from finetune_jax.progress import each, say

_CHUNK = 2**20
_TIMEOUT = 60  # seconds without any data
_PIN = re.compile(r"sha256=([0-9a-fA-F]{64})")


def cache_folder() -> Path:
    """The folder of downloads: ``$FINETUNE_JAX_CACHE``, or ``~/.cache/finetune_jax/weights``."""
    named = os.environ.get("FINETUNE_JAX_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "finetune_jax" / "weights"


@dataclasses.dataclass(frozen=True)
class Place:
    """An address, taken apart: `url`, `name` of the file, SHA-256, and `path` in the cache."""

    url: str
    name: str
    sha256: str
    path: Path


def place_of(address: str) -> Place:
    """Reads ``http(s)://…#sha256=HEX`` or ``gs://…#sha256=HEX``.

    Raises:
      UserError: the address has no checksum, or does not end in the name of a file.
    """
    url, _, fragment = address.partition("#")
    try:
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
    except ValueError as error:
        raise UserError(f"{address}: cannot be downloaded: {error}") from error
    pin = _PIN.fullmatch(fragment)
    if pin is None:
        found = f"found '#{fragment}'" if fragment else "found no checksum"
        raise UserError(
            f"{address}: expected the checksum of the file behind its address, {found}. Append "
            f"#sha256= and the 64 digits that 'sha256sum {name or 'FILE'}' prints for the file "
            f"you trust: {url}#sha256=<64 hexadecimal digits>"
        )
    if not name or name in (".", "..") or len(name) > 200 or re.search(r"[/\\\0]", name):
        raise UserError(f"{address}: its path does not end in the name of a file")
    wanted = pin[1].lower()
    return Place(url, name, wanted, cache_folder() / wanted / name)


def download(address: str) -> Path:
    """Downloads ``http(s)://…#sha256=HEX`` or ``gs://…#sha256=HEX``, if the cache has no such file.

    The checksum of a cached file is verified each time, and a damaged file is downloaded again. A
    download that is interrupted or has another checksum leaves no file.

    Anybody between this machine and the server of an ``http://`` address can read which file is
    fetched, and can send another file, which only the checksum shows. A warning says so.

    Raises:
      UserError: the address has no checksum, the file has another checksum, or the file is not
        available.
    """
    place = place_of(address)
    url, name, wanted, path = place.url, place.name, place.sha256, place.path
    try:
        if path.is_file() and file_digest(path) == wanted:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name, because processes on several machines may share the folder. The module
        # tempfile would make the file readable for its owner alone, and the folder can be shared.
        unfinished = path.with_name(f".{name}.{uuid.uuid4().hex}.unfinished")
        try:
            found = _fetch(url, unfinished)
            if found != wanted:
                raise UserError(
                    f"{url}: SHA-256 is {found}, expected {wanted}; the download was deleted. The "
                    "file was changed or damaged, or the checksum is that of another file"
                )
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
            _remove_if_empty(path.parent)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ValueError: urllib refuses the address
        raise UserError(f"{url}: cannot be downloaded into {path.parent}: {error}") from error
    return path


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _fetch(url: str, path: Path) -> str:
    """Downloads an address to a file; returns the SHA-256."""
    digest, written = hashlib.sha256(), 0
    with _open(url) as (stream, total), path.open("wb") as file:
        for chunk in _chunks(stream, total, url):
            file.write(chunk)
            digest.update(chunk)
            written += len(chunk)
        if total is not None and written != total:
            raise UserError(f"{url}: the download ended after {written} of {total} bytes")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(stream: BinaryIO, total: int | None, url: str) -> Iterator[bytes]:
    if url.lower().startswith("http://"):
        say(f"warning: {url} is not encrypted; only its checksum shows a changed file")
    say(f"fetching {url}" + (f", {total / _CHUNK:.1f} MiB" if total is not None else ""))
    for _ in each(range(-(-(total or 0) // _CHUNK)), "MiB"):
        yield stream.read(_CHUNK)
    while chunk := stream.read(_CHUNK):
        yield chunk


@contextmanager
def _open(url: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yields (stream, number of bytes or None) of an address."""
    if not url.startswith("gs://"):
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length and length.isdecimal() else None
        return
    try:
        import fsspec

        file_system, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise lacks(url, f"the libraries fsspec and gcsfs ({error})", "gcs") from error
    try:
        size = file_system.size(place)
        with file_system.open(place, "rb") as stream:
            yield stream, size
    except (UserError, OSError):
        raise
    except Exception as error:  # gcsfs raises errors of several libraries
        raise UserError(
            f"{url}: cannot be downloaded: {type(error).__name__}: {error}; for a private bucket, "
            "run 'gcloud auth application-default login'"
        ) from error
