"""The config of a command: from a file, from a run's config.json, or from a few flags.

Without ``--config``, the flags ``--data``, ``--model``, ``--weights`` and ``--scheme`` make a
config with the defaults of `finetune_jax.size_defaults`. With ``--config``, these flags set the
keys of the same meaning, and no other key. ``--config.key=value`` sets any other key on top, and
``--save_config`` writes the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import ml_collections
from absl import flags

from finetune_jax import cli, config_file
from finetune_jax import config as config_lib
from finetune_jax.artifact.providers import config_doors
from finetune_jax.doors import require_allowed
from finetune_jax.errors import UserError
from finetune_jax.evaluation.trust import require_trust
from finetune_jax.files import read_json
from finetune_jax.size_defaults import NONE, config_for, source_of


def chosen_config(
    *, new_head: bool = True, scheme: str = "", more: dict[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """The config that the flags of the command choose.

    Args:
      new_head: whether a config that flags make draws the head anew.
      scheme: scheme of a config that flags make, if neither flag nor key gives one.
      more: values by dotted key that the user's own values override.

    Raises:
      UserError: a flag is missing or contradicts a key, a file does not exist, or a stranger's
        config.json names files or code and is not trusted.
    """
    holder = cast(Any, flags.FLAGS["config"])
    given, path = cli.quick_flags(), holder.config_filename
    overrides = dict(holder.override_values)
    _require_one_value(given, overrides)
    if path == cli.FROM_FLAGS:
        config = _from_flags(given, {**(more or {}), **overrides}, new_head, scheme)
    else:
        config = holder.value.copy_and_resolve_references()
        if Path(path).suffix == ".json":
            require_trusted(Path(path), config)
        values: dict[str, Any] = {cli.QUICK[name]: value for name, value in given.items()}
        if "data" in given:
            values["data.source"] = source_of(given["data"])
        if given.get("weights") == NONE:
            values["pretrained.path"] = ""
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict(values)
    several = "schemes" in flags.FLAGS and flags.FLAGS["schemes"].value is not None
    if flags.FLAGS["save_config"].value and not several:  # ablate writes its study beside it
        config_file.write(Path(flags.FLAGS["save_config"].value), config)
    return config.lock()


def _require_one_value(given: dict[str, str], overrides: dict[str, Any]) -> None:
    for name, value in given.items():
        key = cli.QUICK[name]
        if key in overrides and overrides[key] != value:
            raise UserError(
                f"--{name}={value} and --config.{key}={overrides[key]} set the same key; give one"
            )


def _from_flags(
    given: dict[str, str], overrides: dict[str, Any], new_head: bool, scheme: str
) -> ml_collections.ConfigDict:
    named = {name: given.get(name) or overrides.get(key) for name, key in cli.QUICK.items()}
    for name, example in (("data", "PHOTOS"), ("model", "resnet18")):
        if not named[name]:
            raise UserError(
                f"expected --{name}={example} (or --config with a file), found no --{name}; "
                f"'finetune-jax models' lists the models"
            )
    default = config_lib.default()
    return config_for(
        str(named["data"]),
        str(named["model"]),
        str(named["weights"] or "published"),
        named["scheme"] or scheme or default.scheme,
        {key: value for key, value in overrides.items() if key not in cli.QUICK.values()},
        new_head=new_head,
    )


def require_trusted(path: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a stranger's ``config.json`` that names code, files or addresses."""
    known = flags.FLAGS
    allowed = known["allow_imports"].value if "allow_imports" in known else []
    trusted = "trust" in known and bool(known["trust"].value)
    require_allowed(config_doors(config), allowed or [], str(path))
    require_trust(read_json(path), path, trusted)
