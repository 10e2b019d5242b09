"""Small JSON files: atomic writes, and reads whose errors name the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically: after a crash the file has the old or the new content."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file does not exist, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def plain(value: Any) -> Any:
    """Returns a JSON value in which null replaces NaN and infinity, which JSON cannot express."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
