"""Whether an evaluation may read the files and addresses that the config of a run names.

An artifact is predicted from its own folder alone. An evaluation reads the data that the config of
the run names, which may be any path and any address. The configs that this user has trained on this
machine are known (`finetune_jax.known`) by the digest of their content. Any other config is used
only after the user has trusted it, which is needed once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.files import digest
from finetune_jax.known import CONFIGS, is_known, remember
from finetune_jax.progress import say

_READ = (
    "data.source", "data.data_dir", "data.tokenizer", "pretrained.path", "pretrained.class_names",
    "prefix_cache.dir",
)  # fmt: skip
"""Keys of a config whose value is a path, an address, or the name of data."""

_OWN_DATA = "digits"


def places(config: dict[str, Any], overridden: tuple[str, ...] = ()) -> list[str]:
    """What an evaluation of a config reads or downloads, as ``key='value'``.

    Args:
      config: content of ``config.json``, with values of any type.
      overridden: keys whose value comes from the user.
    """
    found = []
    for key in _READ:
        section, _, name = key.partition(".")
        node = config.get(section)
        value = node.get(name) if isinstance(node, dict) else None
        own_data = key == "data.source" and str(value).partition(":")[0] == _OWN_DATA
        if value and not own_data and key not in overridden:
            found.append(f"{key}={value!r:.300}")
    if isinstance(data := config.get("data"), dict) and data.get("prepare"):
        found.append("data.prepare=True, which downloads")
    task = config.get("task")
    loss = task.get("loss") if isinstance(task, dict) else ""
    return [*found, *([f"task.loss={loss!r:.300}"] if "teacher" in str(loss) else [])]


def require_trust(
    config: dict[str, Any], where: Path, trust: bool, overridden: tuple[str, ...] = ()
) -> None:
    """Refuses a config of other people that names files or addresses, unless it is trusted.

    Args:
      config: content of ``config.json``.
      where: its path, for messages.
      trust: whether the user trusts it; it is then known from now on.
      overridden: keys whose value comes from the user.

    Raises:
      UserError: the config is not known and not trusted; lists what would be read.
    """
    key = digest(config)
    read = places(config, overridden)
    if not read or is_known(CONFIGS, key):
        return
    listed = "; ".join(read)
    if not trust:
        raise UserError(
            f"{where} is not the config of a run that you trained on this machine. An evaluation "
            f"with this config reads: {listed}. If you trust its author, give --trust (in Python: "
            "trust=True), which is needed once; predict reads the artifact alone and needs no "
            "trust"
        )
    say(f"{where} is trusted, and these are read: {listed}")
    if not overridden:  # what a value of the user replaces is not among what was trusted
        remember(CONFIGS, key)
