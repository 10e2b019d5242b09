"""Small JSON files: atomic writes, reads whose errors name the file, and checksums of content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError

SEAL = "sha256"
"""Key under which `seal` puts the checksum of an object."""

_LARGEST_JSON = 256 * 2**20


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically: after a crash the file has the old or the new content.

    NaN and infinity, which JSON cannot express, become null.
    """
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 atomically; newlines are written as they are."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file does not exist, is larger than 256 MiB, or does not hold a JSON object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(
                f"{path}: {path.stat().st_size} bytes; expected at most 256 MiB of JSON"
            )
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def parse_json(text: str) -> Any:
    """Parses JSON of an untrusted origin.

    Raises:
      UserError: the text is not JSON (NaN and Infinity are not), names a key of an object twice, or
        is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise UserError("nested too deeply to be a file of this package") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"not readable as JSON: {error}") from None


def plain(value: Any) -> Any:
    """Returns a JSON value in which null replaces NaN and infinity, which JSON cannot express."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(content: Any) -> str:
    """Returns the SHA-256 (hex) of a JSON value; the order of the keys of an object is ignored."""
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its own checksum added, for `require_seal`."""
    return {**plain(content), SEAL: digest(content)}


def require_seal(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns an object of `seal` without its checksum.

    Args:
      content: object that was read.
      where: name of the file or the line, for the message.

    Raises:
      UserError: the checksum is missing, or is not the checksum of the content.
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    if content.get(SEAL) != digest(rest):
        what = "has no checksum" if SEAL not in content else "does not have its own checksum"
        raise UserError(f"{where}: the content {what}; the content was changed or is damaged")
    return rest


def file_digest(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_constant(name: str) -> Any:
    raise UserError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"the key {twice!r} is there twice")
    return content
