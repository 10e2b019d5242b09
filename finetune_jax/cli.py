"""Shared by all commands: the ``--config`` flag, ``--help``, and readable errors."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from finetune_jax import config as config_lib
from finetune_jax import config_keys, settings
from finetune_jax.arguments import at_home, meant_keys, unexpected, unknown_flag
from finetune_jax.configs import shipped
from finetune_jax.ending import reported
from finetune_jax.errors import UserError, nearest
from finetune_jax.files import read_json

# With this, absl counts a flag that is defined here as a flag of the command, and --help shows it.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder[Any]:
    """Defines ``--config`` with ml_collections overrides (``--config.scheme=linear_probe``)."""
    from ml_collections import config_flags

    class ConfigFile(flags.ArgumentParser):
        # The parser of ml_collections reports a missing file only when the config is first read.
        def parse(self, argument: str) -> Any:
            return config_lib.default() if argument == FROM_FLAGS else load_config(argument)

    class Scheme(flags.ArgumentParser):
        # A text stays a text, also if the config file has a list of rules for the key.
        def parse(self, argument: Any) -> Any:
            return argument

    config_flags.register_flag_parser_for_type(Sequence, Scheme())
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A shipped config, such as quickstart, or a file, such as configs/mine.py; every key can "
        "be overridden with --config.key=value. --help=config lists the keys.",
    )
    flags.FLAGS["config"].parser = ConfigFile()
    return holder


FROM_FLAGS = "(flags)"
"""In place of the path of a config file: the config is made from the flags of `define_quick`."""

QUICK = {"data": "data.source", "model": "model.name", "weights": "pretrained.path",
         "scheme": "scheme"}  # fmt: skip
"""The flags of `define_quick`, and the key of the config that each one sets."""


def define_quick() -> None:
    """Defines the flags that make a config without a file, or set its keys: see `QUICK`."""
    for name, what in (
        ("data", "Data in place of a config file: a folder of images, a table, or data.source."),
        ("model", "Model in place of a config file, such as resnet18 or google/vit-base-patch16."),
        ("weights", "published, none, or any value of pretrained.path; default: published."),
        ("scheme", "What trains, such as 'last_k(1)'; the same as --config.scheme."),
        ("save_config", "File.py for the config that the flags make."),
    ):
        flags.DEFINE_string(name, None, what)


def quick_flags() -> dict[str, str]:
    """The given flags of `QUICK`, by name."""
    found = {name: flags.FLAGS[name].value for name in QUICK if name in flags.FLAGS}
    return {name: value for name, value in found.items() if value is not None}


def define_allow_imports() -> flags.FlagHolder[Any]:
    """Defines ``--allow_imports``: packages that an artifact or a run's config may import."""
    return flags.DEFINE_list(
        "allow_imports", [], "Packages whose code may run because the artifact names it."
    )


def define_key() -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """Defines ``--key_file`` and ``--passphrase_file``, with which a sealed file is opened."""
    return (
        flags.DEFINE_string("key_file", "", "File with the secret key of a sealed --workdir."),
        flags.DEFINE_string(
            "passphrase_file", "", "File whose first line is the passphrase of a sealed --workdir."
        ),
    )


def define_accept_changed_data() -> flags.FlagHolder[Any]:
    """Defines ``--accept_changed_data``: go on although data, tokenizer or weights changed."""
    return flags.DEFINE_bool(
        "accept_changed_data",
        False,
        "Continue although data, tokenizer, weights or teacher changed since; this is recorded.",
    )


def define_trust() -> flags.FlagHolder[bool]:
    """Defines ``--trust``: whether files that the config of another user names are read."""
    return flags.DEFINE_bool(
        "trust",
        False,
        "Read the files and addresses that the config of another user's run names.",
    )


def load_config(path: str) -> Any:
    """Returns the locked result of ``get_config`` of a config file; see `call_config_file`.

    The ``config.json`` of a run is a config file too: it is checked, and runs no code.

    Raises:
      UserError: as `call_config_file`; or the function returns something else.
    """
    if path.endswith(".json") and Path(path).is_file():
        try:
            return config_lib.from_json(read_json(Path(path))).lock()
        except UserError as error:
            raise UserError(f"{path}: {error}".replace(f"{path}: {path}", path)) from None
    config = call_config_file(path, "get_config")
    if not isinstance(config, ConfigDict):
        found = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f"{path.split(':', 1)[0]}: get_config returns {found}; expected the config that "
            f"finetune_jax.config.default() returns, with changed keys: end with `return config`"
        )
    return config.lock()


def call_config_file(path: str, function: str) -> Any:
    """Calls a function of a config file.

    Args:
      path: path of the file, or name of a shipped config, such as ``tasks/flowers``; the text after
        a colon is the argument of the function.
      function: name of the function.

    Raises:
      UserError: the file or the function does not exist, or the file or the function raises an
        error; the message has the line of the config file.
    """
    name, *arguments = path.split(":", 1)

    def call(module: ModuleType) -> Any:
        found = _member(module, function)
        try:
            inspect.signature(found).bind(*arguments)
        except TypeError:
            what = f"found {arguments[0]!r} after the colon" if arguments else "found none"
            takes = "no argument" if arguments else "an argument after a colon, --config=FILE:TEXT"
            raise UserError(f"{function}() takes {takes}; {what}") from None
        return found(*arguments)

    return _in_config_file(name, call)


def config_constant(path: str, name: str) -> Any:
    """Reads a module-level constant of a config file; raises as `call_config_file` does."""
    return _in_config_file(path.split(":", 1)[0], lambda module: _member(module, name))


def _in_config_file(name: str, use: Callable[[ModuleType], Any]) -> Any:
    file = _config_file(name)
    loader = SourceFileLoader("config_file", str(file))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    sys.modules[loader.name] = module
    try:
        # What a config file prints is no result of the command.
        with _siblings(file.parent), contextlib.redirect_stdout(sys.stderr):
            loader.exec_module(module)
            return use(module)
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
        if unknown := re.search(r'Key "(\w+)" does not exist', reason):
            raise UserError(f"{place}: {_unknown_key(unknown[1], reason)}") from error
        if isinstance(error, UserError) and line is None:
            raise UserError(f"{name}: {reason}") from None
        if isinstance(error, UserError):
            raise UserError(f"{place}: {reason}") from error
        raise UserError(f"{place}: {type(error).__name__}: {reason}") from error


def _config_file(name: str) -> Path:
    file, known = Path(name), shipped()
    if file.is_file():
        if file.suffix in (".yaml", ".yml", ".toml"):
            raise UserError(
                f"{name}: expected a Python file with a function get_config that returns a config; "
                f"it begins with finetune_jax.config.default() and changes keys"
            )
        return file
    if name in known:
        return known[name]
    if file.is_dir() and (file / "config.json").is_file():
        raise UserError(f"{name} is the folder of a run; expected --config={file / 'config.json'}")
    bare = name.removeprefix("configs/").removesuffix(".py")
    if bare in known and file.parent == Path():  # quickstart.py
        return known[bare]
    if beside := [str(path) for path in sorted(file.parent.glob("*.py"))]:
        hint = nearest(name, [*beside, *known])
    else:
        hint = nearest(name.removeprefix("configs/").removesuffix(".py"), known)
    raise UserError(f"no such config file: {name}.{hint}")


def _member(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        own = [found for found in vars(module) if not found.startswith("__")]
        raise UserError(f"expected {name} in the file, found none.{nearest(name, own)}")
    return getattr(module, name)


@contextlib.contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Lets a config import the files beside it by name, and forgets these modules afterwards.

    Another config may lie beside other files of the same names.
    """
    before = {*sys.modules}
    root = str(folder.resolve())
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(root)
        for name in {*sys.modules} - before:
            found = getattr(sys.modules[name], "__file__", None)
            if found and "." not in name and Path(found).parent == Path(root):
                del sys.modules[name]


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command and turns what ends it early into an exit status without a traceback.

    A `UserError`, an unreadable config or a full disk ends the process with status 2, SIGINT and
    SIGTERM with status 130 and 143, and a reader of the output that closes the pipe (``| head``)
    with status 141.
    """

    def guarded(argv: Sequence[str]) -> None:
        # Orbax logs every write at INFO; lines of this package are printed by progress.say.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        with reported():
            main(argv)

    # --help prints the docstring of the main module.
    module = sys.modules["__main__"]
    module.__doc__ = as_typed(module.__doc__ or "")
    settings.without_strictness()
    with reported():
        if "--help=config" in sys.argv[1:]:
            print(config_keys.as_text())
            return
        app.run(guarded, flags_parser=_parse)


def no_inputs(argv: Sequence[str]) -> None:
    """Raises UserError for arguments without dashes, of a command that takes none."""
    if len(argv) > 1:
        raise UserError(unexpected(argv[1:]))


def _parse(argv: Sequence[str]) -> list[str]:
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"the argument {argument!a} is not UTF-8") from None
    try:
        return _require_paths(flags.FLAGS([at_home(x) for x in _with_config(argv)]))
    except BrokenPipeError:
        raise
    except SystemExit:
        sys.stdout.flush()
        # Only the help flags raise SystemExit here; absl would end the process with status 1.
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        known = flags.FLAGS.get_key_flags_for_module(sys.modules["__main__"])
        names = [flag.name for flag in known]
        # Overrides are read after --config alone.
        lone = error.flagname.startswith("config.") and "config" in names
        message = _key("'config.") if lone else unknown_flag(error.flagname, names)
    except (flags.Error, UserError) as error:
        # absl wraps the error of a parser and adds the name of the flag a second time.
        own = error.__context__ if isinstance(error.__context__, UserError) else None
        message = str(own) if own else _key(str(error)) + _meant(str(error), argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for unknown keys, wrong types and unreadable files.
        message = _key(_text(error))
    print(f"error: {message}", file=sys.stderr)
    print(f"see: {_program()} --help", file=sys.stderr)
    sys.exit(2)


def _require_paths(rest: list[str]) -> list[str]:
    """Raises UserError for an empty path: the current folder would be meant by it."""
    for name in ("workdir", "output"):
        if name in flags.FLAGS and flags.FLAGS[name].present and flags.FLAGS[name].value == "":
            raise UserError(f"--{name} is empty; expected a path (is a shell variable unset?)")
        value = flags.FLAGS[name].value if name in flags.FLAGS else None
        if isinstance(value, str):
            require_no_address(value, f"--{name}")
    return rest


def require_no_address(path: str, flag: str) -> None:
    """Raises UserError for an address such as ``s3://bucket``, which no folder is called."""
    if re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE):
        raise UserError(
            f"{flag}={path}: an address; expected a folder or a file of this machine, which may be "
            f"a mounted bucket (gcsfuse, s3fs)"
        )


def _meant(message: str, argv: Sequence[str]) -> str:
    """The end of a message about a missing ``--config`` whose value stands alone; else ""."""
    if not message.startswith("flag --config=None"):
        return ""
    alone = [x for x in argv[1:] if not x.startswith("-")]
    found = next((x for x in alone if x.endswith(".py") or x.split(":")[0] in shipped()), "")
    return f"; did you mean --config={found}?" if found else ", such as --config=quickstart"


def _with_config(argv: Sequence[str]) -> list[str]:
    """The arguments with ``--config`` where flags of `define_quick` are in place of a file."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv if argument[:1] == "-"]
    quick = "data" in flags.FLAGS and any(name in ("data", "model", "weights") for name in names)
    if "config" in names or not quick:
        return [*argv]
    # ml_collections reads overrides such as --config.scheme after --config alone.
    return [argv[0], f"--config={FROM_FLAGS}", *argv[1:]]


def _key(message: str) -> str:
    """Turns the message of absl or ml_collections about a wrong key into a sentence."""
    # The second is the message about an override such as --config.seed=1 without --config.
    if message.startswith("flag --config=None") or "'config." in message:
        quick = ", or --data=PHOTOS --model=resnet18" if "data" in flags.FLAGS else ""
        return f"expected --config=NAME of a config or of its file{quick}"
    if wrong := re.search(r'Did you mean "(.+)" instead of "(.+)"', message):
        return f"no config key {wrong[2]!r}. Did you mean {wrong[1]!r}?"
    if bare := re.fullmatch(r"\W*(\w+)\W*", message):
        return _unknown_key(bare[1])
    if lacking := re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", message):
        return f"--{lacking[1]} is missing"
    for pattern, expected in _EXPECTED.items():
        if wrong := re.fullmatch(rf"(flag --[^=]+)=(.*?): {pattern}.*", message, re.S):
            return f"{wrong[1]}: expected {expected}, found {wrong[2]!r}"
    return message


# Python's texts about a value that a flag cannot read, and what is expected.
_EXPECTED = {
    "invalid literal for int": "a whole number, such as 1000",
    "could not convert string to float": "a number, such as 0.1 or 1e-3",
    r"\('Non-boolean argument": "True or False",
}


def _unknown_key(name: str, reason: str = "") -> str:
    """The message about a key that no config has; `reason` is that of ml_collections."""
    if close := re.search(r'Did you mean "(.+?)"', reason):
        return f"no config key {name!r}. Did you mean {close[1]!r}?"
    return f"no config key {name!r}{_abbreviated(name)}"


def _abbreviated(name: str) -> str:
    """The end of a message: the keys that a word such as ``lr`` may mean, or where keys stand."""
    if found := [repr(key) for key in meant_keys(name)]:
        return f". Did you mean {' or '.join(found[:3])}?"
    return "; --help=config lists all keys"


def _text(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(error.args[0]) if error.args else str(error)


def _program() -> str:
    """The command that the user typed, such as ``python -m finetune_jax.train``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # Only `finetune-jax` runs a file: the __main__.py of a package.
    name = spec.name if spec else f"finetune_jax.{Path(sys.argv[0]).parent.name}"
    return as_typed(f"python -m {name.removesuffix('.__main__')}")


def as_typed(text: str) -> str:
    """Rewrites commands in a text for a user of the console script."""
    if not any(Path(word).stem == "finetune-jax" for word in sys.orig_argv[:2]):
        return text
    return re.sub(r"python -m finetune_jax\.(\w+)", r"finetune-jax \1", text)


def train_command(scheme: str, arguments: Sequence[str]) -> str:
    """The command that trains under a scheme with the config of ``suggest``, as one types it.

    Args:
      scheme: the scheme.
      arguments: arguments of ``suggest``.
    """
    kept, own = [], ("output", "batches", "json", "nojson", "config.scheme", "scheme", "workdir")
    words = iter(arguments)
    for word in words:
        name, is_one_word, _ = word.lstrip("-").partition("=")
        value = [] if is_one_word or name in ("json", "nojson") else [next(words, "")]
        if name not in own:
            kept += [word, *value]
    chosen = [f"--config.scheme={scheme}", "--workdir=runs/suggested"]
    return as_typed("python -m finetune_jax.train ") + shlex.join([*kept, *chosen])
