"""What the commands share: the --config flag, --help, and errors a person can read."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from finetune_jax.errors import UserError, nearest

# What is defined here counts as the command's own, so that its --help shows it.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder[Any]:
    """Defines ``--config`` with ml_collections overrides (``--config.scheme=linear_probe``)."""
    from ml_collections import config_flags

    class ConfigFile(flags.ArgumentParser):
        # ml_collections' own puts off a missing file until the config is first read.
        def parse(self, argument: str) -> Any:
            return load_config(argument)

    class Scheme(flags.ArgumentParser):
        # Text stays text; a config file may have set a list of rules.
        def parse(self, argument: Any) -> Any:
            return argument

    config_flags.register_flag_parser_for_type(Sequence, Scheme())
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, such as configs/quickstart.py; every key can be overridden with "
        "--config.key=value.",
    )
    flags.FLAGS["config"].parser = ConfigFile()
    return holder


def load_config(path: str) -> Any:
    """What ``get_config`` of a config file returns, locked; see `call_config_file`."""
    return call_config_file(path, "get_config").lock()


def call_config_file(path: str, function: str) -> Any:
    """What a function of a config file returns.

    Args:
      path: of the file; what follows a colon is handed to the function.
      function: its name.

    Raises:
      UserError: no such file or function, or the error it raises, with its line.
    """
    name, *arguments = path.split(":", 1)
    file = Path(name)
    if not file.is_file():
        near = [str(p) for folder in (file.parent, Path("configs")) for p in folder.glob("*.py")]
        raise UserError(f"no such config file: {name}.{nearest(name, dict.fromkeys(near))}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function, None)
        if found is None:
            near = nearest(function, vars(module))
            raise UserError(f"expected a function {function}(), found none.{near}")
        return found(*arguments)
    except Exception as error:
        if isinstance(error, SyntaxError):
            line, reason = error.lineno, error.msg
        else:
            calls = traceback.extract_tb(error.__traceback__)
            line = next((c.lineno for c in reversed(calls) if c.filename == str(file)), None)
            # A locked config lists all it holds before it names the nearest key.
            reason = re.sub(
                r"Other fields present: .*(?=Did you mean)", "", _text(error), flags=re.S
            )
            reason = " ".join(reason.split())
        where = f"{name}, line {line}" if line else name
        raise UserError(f"{where}: {type(error).__name__}: {reason}") from error


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
    except SystemExit:
        # The help flags alone end a program here, and absl lets them end it with status 1.
        sys.exit(0)
    except (flags.Error, UserError) as error:
        # absl wraps what a parser raises, and says again which flag it was.
        own = error.__context__ if isinstance(error.__context__, UserError) else None
        message = str(own) if own else _key(str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for unknown keys, wrong types and unreadable files.
        message = _key(_text(error))
    print(f"error: {message}", file=sys.stderr)
    print(f"see: python -m {_module_name()} --help", file=sys.stderr)
    sys.exit(2)


def _key(message: str) -> str:
    """What ml_collections says of a wrong key, which was made for a traceback, in words."""
    if wrong := re.search(r'Did you mean "(.+)" instead of "(.+)"', message):
        return f"no config key {wrong[2]!r}. Did you mean {wrong[1]!r}?"
    if bare := re.fullmatch(r"\W*(\w+)\W*", message):
        return f"no config key {bare[1]!r}; finetune_jax/config.py lists them all"
    return message


def _text(error: Exception) -> str:
    # The text of a KeyError is a repr.
    return str(error.args[0]) if error.args else str(error)


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else sys.argv[0]
