"""What a user may have meant by an argument of a command that no flag of the command reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from finetune_jax import config as config_lib
from finetune_jax.errors import nearest

# The value of a flag, after "=" or after a comma in it. A shell reads "~" at the start of a word
# alone, and a config file or a stored command has no shell at all.
_HOME = re.compile(r"(?<=[=,])~(?=/|,|$)")
_SETTING = re.compile(r"(config\.)?([a-z][\w.]*)=(.*)", re.S)


def at_home(argument: str) -> str:
    """An argument with the home folder in place of ``~`` in the value of its flag.

    ``--workdir=~/runs/a`` becomes ``--workdir=/home/me/runs/a``; ``--config.…`` is kept, because
    each key of a config that holds a path is read with ``~``, and the folder of a run stays valid
    if the home folder is moved.
    """
    if not re.match(r"--?\w+=", argument):
        return argument
    return _HOME.sub(lambda _: os.path.expanduser("~"), argument)


def meant_keys(name: str) -> list[str]:
    """The config keys that a word may mean: those that end in it, or that it abbreviates (``lr``).

    Args:
      name: the word, with ``-`` or ``_`` between its parts, and with or without dots.
    """
    word = name.replace("-", "_").rpartition(".")[2].lower()
    keys = [*config_lib.keys(config_lib.default())]
    last = {key: key.rpartition(".")[2] for key in keys}
    short = {key: "".join(part[0] for part in last[key].split("_")) for key in keys}
    found = [k for k in keys if word == last[k] or (word == short[k] and len(word) > 1)]
    found = found or [k for k in keys if last[k].replace("_", "") == word.replace("_", "")]
    return found


def unknown_flag(name: str, valid: Iterable[str]) -> str:
    """The message about a flag that a command does not have, with what may be meant.

    Args:
      name: the flag without dashes.
      valid: the flags of the command; with ``config`` among them, keys of a config are meant too.
    """
    own = [flag for flag in valid if flag.partition(".")[0] != "help"]
    if re.search(r"\s", name) or not re.match(r"[A-Za-z]", name):
        return f"no flag '-{name}'; a text that begins with - stands after --, as in: -- '-{name}'"
    meant = sorted(meant_keys(name), key=lambda key: not key.startswith("train."))
    keys = [f"--config.{key}" for key in meant] if "config" in own else []
    if keys:
        return f"no flag --{name}. Did you mean {' or '.join(keys[:3])}?"
    hint = nearest(name, own)
    if hint.startswith(" Valid"):
        hint = f" The flags of this command: {', '.join('--' + flag for flag in sorted(own))}."
    return f"no flag --{name}." + hint.replace("mean '", "mean '--")


def unexpected(arguments: Sequence[str]) -> str:
    """The message about arguments without dashes of a command that takes none.

    ``train.steps=8``, as of Hydra, is answered with ``--config.train.steps=8``.
    """
    settings = []
    for argument in arguments:
        if setting := _SETTING.fullmatch(argument):
            _, key, value = setting.groups()
            keys = [*config_lib.keys(config_lib.default())]
            found = key if key in keys else next(iter(meant_keys(key)), "")
            settings.append(f"--config.{found}={value}" if found else "")
    hint = ""
    if settings and all(settings):
        hint = f"; did you mean {' '.join(settings)}?"
    return f"expected flags, which begin with --; found {' '.join(map(repr, arguments))}{hint}"
