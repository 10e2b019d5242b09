"""Names of other packages' objects in a config: ``package.module:name``.

A scheme, model, task, loss, data source or name map that this package does not have is imported by
such a name, which this module calls a door.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from typing import Any

from finetune_jax.errors import UserError, nearest

DOOR = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``package.module:name``."""


def is_door(name: str) -> bool:
    """Whether `name` is written as ``package.module:name``."""
    return bool(DOOR.fullmatch(name))


def open_door(name: str, kind: str, expected: type | tuple[type, ...]) -> Any:
    """Imports the object that ``package.module:name`` names.

    Args:
      name: the door.
      kind: the config key or the kind of object, which an error message starts with.
      expected: what the object must be an instance of; `type` for classes.

    Returns:
      The object.

    Raises:
      UserError: the name is written otherwise, the module cannot be imported, the module has no
        such object, or the object is of another type.
    """
    if not is_door(name):
        raise UserError(f"{kind}: expected package.module:name, found {name!r}")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{kind}: {name!r}: cannot import {module_name!r}: {error}; expected an installed "
            f"package or a module in the current folder"
        ) from error
    except Exception as error:
        raise UserError(
            f"{kind}: {name!r}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(
            f"{kind}: the module {module_name!r} has no {attribute!r}.{nearest(attribute, public)}"
        )
    found = getattr(module, attribute)
    if not isinstance(found, expected):
        types = expected if isinstance(expected, tuple) else (expected,)
        wanted = " or ".join(t.__name__ for t in types)
        raise UserError(f"{kind}: {name!r}: expected {wanted}, found {type(found).__name__}")
    return found


def provider(name: str) -> dict[str, str]:
    """Which distribution provides a door, for the record of a run or an artifact.

    Returns:
      ``door``, ``package`` (the distribution, or the top-level module where no distribution is
      installed) and ``version`` (empty where no distribution is installed).
    """
    top = name.partition(":")[0].partition(".")[0]
    for distribution in _distributions().get(top, ()):
        version = importlib.metadata.version(distribution)
        return {"door": name, "package": distribution, "version": version}
    return {"door": name, "package": top, "version": ""}


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def require_allowed(doors: Iterable[str], allowed: Iterable[str], file: str) -> None:
    """Raises UserError for a door that a file names and that the user has not allowed.

    Importing a module runs the module's code, and a file that comes from elsewhere must not choose
    what runs. A package is allowed by name, or because the process has imported the package.

    Args:
      doors: ``package.module:name``, as the file has them.
      allowed: names of top-level packages.
      file: path of the file, for the message.
    """
    packages = {*allowed}
    for door in doors:
        top = door.partition(":")[0].partition(".")[0]
        if top not in packages and top not in sys.modules:
            raise UserError(
                f"{file} needs {door!r} of the package {top!r}, whose code would run; if you trust "
                f"the package, add --allow_imports={top}, or import {top} first"
            )
