"""Reads how a folder of sentence-transformers pools the tokens of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.files import parse_json, read_json
from finetune_jax.progress import say

# The settings of the older files are one flag for each kind of pooling.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
KNOWN = ("cls", "mean")
"""Kinds of pooling of sentence-transformers that our text encoders have."""


def read_pooling(folder: Path) -> tuple[str, Path] | None:
    """The pooling that ``1_Pooling/config.json`` sets, and the file; None if there is no such file.

    ``modules.json`` beside the weights, or in the folder above (weights in ``0_Transformer``),
    names the folder of the pooling. A message names each module after the pooling that our model
    does not have.

    Args:
      folder: folder of the weight file.

    Raises:
      UserError: a file cannot be read, or the pooling is none of `KNOWN`.
    """
    root, modules = _modules(folder)
    poolings = [m for m in modules if m["type"].rpartition(".")[2] == "Pooling"]
    path = root / (poolings[0]["path"] if poolings else "1_Pooling") / "config.json"
    if not path.is_file():
        if poolings:
            raise UserError(f"{path}: no such file, and {root / 'modules.json'} names it")
        return None
    for module in modules:
        name = module["type"].rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize"):
            say(
                f"{root / 'modules.json'}: the model here has no module {name} "
                f"({module['path'] or name}); its features are those before this module"
            )
    return _mode(read_json(path), path), path


def _mode(settings: Mapping[str, Any], path: Path) -> str:
    found = settings.get("pooling_mode")
    if found is None:
        found = [mode for flag, mode in _FLAGS.items() if settings.get(flag) is True]
    modes = [found] if isinstance(found, str) else found
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in KNOWN:
        raise UserError(
            f"{path}: the pooling {json.dumps(found)} is not supported; expected "
            f"{' or '.join(KNOWN)}. model.pooling sets another pooling than the file's"
        )
    return str(modes[0])


def _modules(folder: Path) -> tuple[Path, list[dict[str, str]]]:
    """The folder of ``modules.json`` and its modules; (folder, []) without such a file."""
    for root in (folder, folder.parent):
        path = root / "modules.json"
        if not path.is_file():
            continue
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}") from None
        if not isinstance(content, list) or not all(
            isinstance(m, dict)
            and isinstance(m.get("type"), str)
            and isinstance(m.get("path"), str)
            and ".." not in Path(m["path"]).parts
            and not Path(m["path"]).is_absolute()
            for m in content
        ):
            raise UserError(f"{path}: expected a list of modules with a type and a path")
        if root == folder or any(m["path"] == folder.name for m in content):
            return root, content
    return folder, []
