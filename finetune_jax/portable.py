"""Removes from a config what depends on the machine, such as the folders of paths."""

from __future__ import annotations

import copy
import re
from typing import Any

_NO_EFFECT = ("data.data_dir", "data.workers", "prefix_cache.dir")
"""Keys that change no result: folders of downloads and of a cache, and how many processes read."""

_PATHS = (
    *("data.source", "data.tokenizer", "data.classes", "pretrained.path", "pretrained.class_names"),
    *("pretrained.name_map", "task.loss", "task.name"),
)
"""Keys whose value is, or contains, a path."""

# An absolute path at the start of a text or after a separator; "//" is part of an address.
_ABSOLUTE_PATH = re.compile(r"""(?<![^\s,:=('"])(?:~[\w.-]*/|/(?!/))[^,:'"()\n]*""")


def portable(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a `config.to_json` object without what depends on the machine.

    The result is for hashes and comparisons. Of an absolute path the last component is kept, and
    folders of caches and downloads and the number of data workers are left out. So two configs are
    equal if only a home folder, a package or the data was moved. The content of the files is part
    of the identity of a run (`finetune_jax.identity`).
    """
    values = copy.deepcopy(values)
    for key in _NO_EFFECT:
        node, name = _node(values, key)
        node.pop(name, None)
    for key in _PATHS:
        node, name = _node(values, key)
        if isinstance(node.get(name), str):
            node[name] = _ABSOLUTE_PATH.sub(_last_component, node[name])
    return values


def _node(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    parent, _, name = key.rpartition(".")
    node = values.get(parent, {})
    return (node if isinstance(node, dict) else {}), name


def _last_component(match: re.Match[str]) -> str:
    return match[0].rstrip("/").rpartition("/")[2]
