"""Shared by all commands: the ``--config`` flag, ``--help``, and readable errors."""

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

# absl then counts a flag that is defined here as a flag of the command, and --help shows the flag.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder[Any]:
    """Defines ``--config`` with ml_collections overrides (``--config.scheme=linear_probe``)."""
    from ml_collections import config_flags

    class ConfigFile(flags.ArgumentParser):
        # The parser of ml_collections reports a missing file only when the config is first read.
        def parse(self, argument: str) -> Any:
            return load_config(argument)

    class Scheme(flags.ArgumentParser):
        # A text stays a text, also if the config file has a list of rules for the key.
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
    """Returns the locked result of ``get_config`` of a config file; see `call_config_file`."""
    return call_config_file(path, "get_config").lock()


def call_config_file(path: str, function: str) -> Any:
    """Returns the result of a function of a config file.

    Args:
      path: path of the file; the text after a colon is the argument of the function.
      function: name of the function.

    Raises:
      UserError: the file or the function does not exist, or the file or the function raises an
        error; the message has the line of the config file.
    """
    name, *arguments = path.split(":", 1)
    file = Path(name)
    if not file.is_file():
        near = [str(p) for folder in (file.parent, Path("configs")) for p in folder.glob("*.py")]
        raise UserError(f"no such config file: {name}.{nearest(name, dict.fromkeys(near))}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{name}: expected a Python file, whose name ends in .py")
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
        line: int | None
        if isinstance(error, SyntaxError):
            line, reason = error.lineno, error.msg
        else:
            calls = traceback.extract_tb(error.__traceback__)
            line = next((c.lineno for c in reversed(calls) if c.filename == str(file)), None)
            # The message of a locked config lists all keys before the nearest key.
            reason = re.sub(
                r"Other fields present: .*(?=Did you mean)", "", _text(error), flags=re.S
            )
            reason = " ".join(reason.split())
        place = f"{name}, line {line}" if line else name
        raise UserError(f"{place}: {type(error).__name__}: {reason}") from error


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command; a `UserError` or an unreadable config ends the process with status 2."""

    def guarded(argv: Sequence[str]) -> None:
        # Orbax logs every write at INFO; lines of this package are printed by progress.say.
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
        # Only the help flags raise SystemExit here; absl would end the process with status 1.
        sys.exit(0)
    except (flags.Error, UserError) as error:
        # absl wraps the error of a parser and adds the name of the flag a second time.
        own = error.__context__ if isinstance(error.__context__, UserError) else None
        message = str(own) if own else _key(str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for unknown keys, wrong types and unreadable files.
        message = _key(_text(error))
    print(f"error: {message}", file=sys.stderr)
    print(f"see: python -m {_module_name()} --help", file=sys.stderr)
    sys.exit(2)


def _key(message: str) -> str:
    """Turns the message of ml_collections about a wrong key into a sentence."""
    if wrong := re.search(r'Did you mean "(.+)" instead of "(.+)"', message):
        return f"no config key {wrong[2]!r}. Did you mean {wrong[1]!r}?"
    if bare := re.fullmatch(r"\W*(\w+)\W*", message):
        return f"no config key {bare[1]!r}; finetune_jax/config.py lists them all"
    return message


def _text(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(error.args[0]) if error.args else str(error)


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else sys.argv[0]
