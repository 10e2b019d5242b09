"""Packages that an artifact needs beside this one, because it was made with doors.

A door is a name ``package.module:name``, see `finetune_jax.doors`. ``artifact.json`` lists under
``providers`` each door with its package and the version of the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from finetune_jax import deltas, schemes, tasks
from finetune_jax.data.sources import SOURCES
from finetune_jax.doors import DOOR, is_door, provider, require_allowed
from finetune_jax.progress import say


def doors_to_import(card: dict[str, Any]) -> tuple[str, ...]:
    """The doors that are imported when an artifact is read: model, name map, deltas, task, loss.

    Args:
      card: content of ``artifact.json``. Its ``providers`` are not trusted to be complete.
    """
    names = (card.get("model", {}).get("name"), card.get("base", {}).get("name_map"))
    doors = [str(name) for name in names if is_door(str(name))]
    doors += tasks.doors_of(card.get("task", {}))
    doors += deltas.doors_of(card.get("deltas", ()))
    return tuple(dict.fromkeys(doors))


def config_doors(config: ConfigDict) -> tuple[str, ...]:
    """The doors that are imported when the config of a run is evaluated.

    These are the doors of the model, the name map, the task, the loss and the data source. The
    scheme of a run is not imported again.
    """
    names = (config.model.name, config.pretrained.name_map)
    doors = [name for name in names if is_door(name)]
    doors += tasks.doors_of({"name": config.task.name, "loss": config.task.loss})
    if config.data.source.partition(":")[0] not in SOURCES:
        source = DOOR.match(config.data.source)
        doors += [source.group()] if source else []
    return tuple(dict.fromkeys(doors))


def packages_of(config: ConfigDict) -> set[str]:
    """The top-level packages of all doors that a config names, the doors of its scheme included."""
    doors = [*config_doors(config), *DOOR.findall(str(config.scheme))]
    return {door.partition(":")[0].partition(".")[0] for door in doors}


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
