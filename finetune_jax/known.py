"""Digests of configs that this user has run, and of tokenizers that were tried, on this machine.

The digests are lines of a file for each kind, in the folder ``$FINETUNE_JAX_STATE``, or
``$XDG_STATE_HOME/finetune_jax``, or ``~/.local/state/finetune_jax``. To forget all digests, remove
this folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from finetune_jax.progress import say

CONFIGS, TOKENIZERS = "configs", "tokenizers"


def state_folder() -> Path:
    """The folder of the files of digests."""
    if named := os.environ.get("FINETUNE_JAX_STATE"):
        return Path(named)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "finetune_jax"


def is_known(kind: str, digest: str) -> bool:
    """Whether `remember` was called with these arguments, by this user on this machine."""
    try:
        return digest in (state_folder() / kind).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError, RuntimeError):  # RuntimeError: there is no home folder
        return False


def remember(kind: str, digest: str) -> None:
    """Adds a digest to a file; says so where the file cannot be written.

    Args:
      kind: name of the file.
      digest: hexadecimal digits.
    """
    if is_known(kind, digest):
        return
    try:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One short write in append mode: processes that write together do not mix their lines.
        with (folder / kind).open("a", encoding="utf-8") as file:
            file.write(f"{digest}\n")
    except (OSError, RuntimeError) as error:
        say(f"{kind} are not remembered, because {error} ($FINETUNE_JAX_STATE names the folder)")
