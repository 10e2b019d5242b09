"""Packages that an artifact needs beside this one, because it was made with doors.

A door is a name ``package.module:name``, see `finetune_jax.doors`. ``artifact.json`` lists under
``providers`` each door with its package and the version of the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from finetune_jax.doors import DOOR, is_door, provider, require_allowed
from finetune_jax.progress import say

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def doors_to_import(card: dict[str, Any]) -> tuple[str, ...]:
    """The doors that are imported when an artifact is read: model, name map, deltas, task, loss.

    Args:
      card: content of ``artifact.json``. Its ``providers`` are not trusted to be complete.
    """
    task = card.get("task", {})
    names = [
        card.get("model", {}).get("name"),
        card.get("base", {}).get("name_map"),
        task.get("name"),
        *(delta.get("kind") for delta in card.get("deltas", ())),
        *_doors_in(task.get("loss")),
    ]
    return tuple(dict.fromkeys(name for name in names if is_door(str(name))))


def providers_of(card: dict[str, Any]) -> list[dict[str, str]]:
    """`finetune_jax.doors.provider` of each door of an artifact, the scheme's terms included."""
    scheme = _doors_in(card.get("plan", {}).get("scheme"))
    return [provider(door) for door in dict.fromkeys((*doors_to_import(card), *scheme))]


def check_providers(card: dict[str, Any], allow_imports: Iterable[str], file: str) -> None:
    """Refuses doors that nobody allowed; says which packages have another version than recorded.

    Args:
      card: content of ``artifact.json``.
      allow_imports: top-level packages whose code may run.
      file: path of the artifact, for messages.

    Raises:
      UserError: a door of a package that is not allowed, see `doors.require_allowed`.
    """
    needed = doors_to_import(card)
    require_allowed(needed, allow_imports, file)
    for recorded in card.get("providers", ()):
        if recorded.get("door") not in needed:
            continue
        installed = provider(recorded["door"])["version"]
        if installed != recorded.get("version"):
            say(
                f"{file} was made with {recorded.get('package')} {_version(recorded)}, installed "
                f"is {installed or 'no version'}: {recorded['door']} may differ"
            )


def _version(recorded: dict[str, str]) -> str:
    return recorded.get("version") or "without a version"


def _doors_in(text: Any) -> list[str]:
    """The doors that a text of calls names outside of its quoted arguments."""
    return DOOR.findall(_QUOTED.sub("''", text)) if isinstance(text, str) else []
