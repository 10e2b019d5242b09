"""Packages that an artifact needs beside this one, because it was made with doors.

A door is a name ``package.module:name``, see `finetune_jax.doors`. ``artifact.json`` lists under
``providers`` each door with its package and the version of the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune_jax import deltas, schemes
from finetune_jax.doors import DOOR, is_door, provider, require_allowed
from finetune_jax.progress import say


def doors_to_import(card: dict[str, Any]) -> tuple[str, ...]:
    """The doors that are imported when an artifact is read: model, name map, deltas, task, loss.

    Args:
      card: content of ``artifact.json``. Its ``providers`` are not trusted to be complete.
    """
    task = card.get("task", {})
    names = [
        str(card.get("model", {}).get("name")),
        str(card.get("base", {}).get("name_map")),
        str(task.get("name")),
    ]
    doors = [name for name in names if is_door(name)]
    doors += deltas.doors_of(card.get("deltas", ()))
    doors += DOOR.findall(str(task.get("loss", "")))
    return tuple(dict.fromkeys(doors))


def providers_of(card: dict[str, Any]) -> list[dict[str, str]]:
    """`finetune_jax.doors.provider` of each door of an artifact, the scheme's terms included."""
    doors = dict.fromkeys((*doors_to_import(card), *schemes.doors_of(card["plan"])))
    return [provider(door) for door in doors]


def check_providers(card: dict[str, Any], allow_imports: Iterable[str], file: str) -> None:
    """Refuses doors that are not allowed, and says which packages changed their version.

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
        installed = provider(recorded["door"])
        if installed["version"] != recorded.get("version"):
            say(
                f"{file}: {recorded['door']} was recorded with {_shown(recorded)}, and "
                f"{_shown(installed)} is installed: results may differ"
            )


def _shown(provider: dict[str, str]) -> str:
    return f"{provider.get('package')} {provider.get('version') or 'without a version'}"
