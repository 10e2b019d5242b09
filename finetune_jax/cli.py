"""What the commands share: the --config flag, first words, and errors a person can read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from finetune_jax.errors import UserError


def define_config() -> flags.FlagHolder[Any]:
    """Defines ``--config`` with ml_collections overrides (``--config.scheme=linear_probe``)."""
    from ml_collections import config_flags

    return config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, such as configs/quickstart.py; every key can be overridden with "
        "--config.key=value.",
        lock_config=True,
    )


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: a `UserError`, or a config that cannot be read, ends it with status 2."""

    def guarded(argv: Sequence[str]) -> None:
        # Orbax logs every write at INFO; our own lines go through reporting.progress.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        message = str(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for unknown keys, wrong types and unreadable files.
        message = str(error.args[0]) if error.args else str(error)
    print(f"error: {message}", file=sys.stderr)
    print(f"see: python -m {_module_name()} --help", file=sys.stderr)
    sys.exit(2)


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else sys.argv[0]
