"""Checksums of weight files: those that a source ends in, and those of published files."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from finetune_jax.errors import UserError
from finetune_jax.files import file_digest

_PIN = re.compile(r"(.+)#sha256=([0-9a-fA-F]{64})")

PUBLISHED = {
    "mobilenet_v1_0.25_224.h5": "dc1ff623e6cd99c3cc0dd2821ca0807ba013606af5a4e2afd4488fbf26a8b589",
    "pretrainedResnet.h5": "5f938a8eea605438cc7360aa13c987bc6d7bd0c8d931b2917361ae7ae4eeda2f",
    "resnet20-12fca82f.th": "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    "resnet32-d509ac18.th": "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    "resnet20_cifar10.safetensors": (
        "f8ac8e776b3a898d70e36a5bad6ce0a0a54ca2d3403847829179ba7a20da68b5"
    ),
}
"""SHA-256 of published files by name: those that the results of this package were made with."""


def unpinned(source: str) -> tuple[str, str]:
    """(a source without its checksum, the checksum in lower case or '').

    Raises:
      UserError: the text after ``#sha256=`` is no checksum.
    """
    if "#sha256=" not in source:
        return source, ""
    match = _PIN.fullmatch(source)
    if match is None:
        raise UserError(
            f"{source}: expected the 64 hexadecimal digits after #sha256= that 'sha256sum FILE' "
            f"prints"
        )
    return match[1], match[2].lower()


def require_digest(source: str, path: Path, wanted: str) -> None:
    """Raises UserError if a file does not have the SHA-256 `wanted`.

    Args:
      source: the source, for the message.
      path: its file.
      wanted: 64 hexadecimal digits in lower case.
    """
    if path.is_dir() or path.name.endswith(".index.json"):
        raise UserError(
            f"{source}: a checksum is that of one file, and {path.name} stands for several; "
            f"for a repository, pin its revision instead: hf:owner/name@COMMIT"
        )
    try:
        state = path.stat()
        found = _digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if found != wanted:
        raise UserError(
            f"{path}: SHA-256 is {found}, and {source} expects {wanted}: the file was changed or "
            f"damaged, or the checksum is that of another file"
        )


@functools.lru_cache(maxsize=64)  # a run resolves its source several times
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # part of the key
    return file_digest(path)


def other_than_published(name: str, digest: str) -> str:
    """A warning about a file that has the name of a published file and another content; else ''.

    Args:
      name: name of the file.
      digest: its SHA-256.
    """
    known = PUBLISHED.get(name)
    if known is None or known == digest:
        return ""
    return (
        f"warning: {name} has the name of a published file and another content: its SHA-256 is "
        f"{digest[:16]}…, that of the published file {known[:16]}…"
    )
