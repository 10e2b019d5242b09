"""Keeps Orbax from calls of TensorStore whose memory TensorStore never frees.

Measured with TensorStore 0.1.78 to 0.1.86. Without these two changes, a run that saves often grows
by about 0.1 MiB with every checkpoint.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

_Address = Callable[..., dict[str, Any]]


def apply() -> None:
    """Changes two functions of Orbax; the files that Orbax writes stay the same."""
    orbax: Any = sys.modules.get("orbax.checkpoint._src.serialization.tensorstore_utils")
    # Orbax reads all metrics of TensorStore at each checkpoint for a line of its log: 14 KiB.
    if hasattr(orbax, "get_tensorstore_raw_bytes"):
        orbax.get_tensorstore_raw_bytes = lambda *_, **__: 0
    # Orbax asks TensorStore for the address of every leaf: about 700 bytes.
    name = "_build_ocdbt_kvstore_tspec"
    if hasattr(orbax, name) and not hasattr(getattr(orbax, name), "__wrapped__"):
        setattr(orbax, name, once_per_folder(getattr(orbax, name)))


def once_per_folder(address: _Address) -> _Address:
    """Wraps a function of the folder and the name of a leaf whose result has the name as ``path``.

    Returns:
      The same function, which calls ``address`` once for all leaves of a folder.
    """
    of_folder = functools.lru_cache(maxsize=8)(address)

    @functools.wraps(address)
    def with_name(directory: str, name: str | None = None, **options: Any) -> dict[str, Any]:
        found = copy.deepcopy(of_folder(str(directory), None, **options))
        return found if name is None else {**found, "path": name}

    return with_name
