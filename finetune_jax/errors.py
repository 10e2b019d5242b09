"""The error class for bad input of a user, and the hint at the nearest valid name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType


class UserError(ValueError):
    """Bad input. The text says what was expected, what was found, and the nearest valid name.

    A command prints the text without a traceback and ends with exit status 2. Any other exception
    is a bug of this package and keeps its traceback.
    """


class Blocked(UserError):
    """The file system or another process prevents the command, which may succeed later.

    An ablation therefore does not record the error as the result of an arm.
    """


class CheckFailed(RuntimeError):
    """A check of a run's own result failed, such as the audit of frozen leaves.

    A command prints the text without a traceback and ends with exit status 2.
    """


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """Puts a config key in front of the message of a `UserError`, unless the message has the key.

    Texts in a small language (a scheme, a schedule, an augmentation) are read by functions that do
    not know which key they come from.
    """
    try:
        yield
    except UserError as error:
        if type(error) is not UserError or key in str(error):
            raise
        raise UserError(f"{key}: {error}") from None


def lacks(what: str, library: str, extra: str) -> UserError:
    """Returns the error about an optional library that is not installed.

    Args:
      what: the setting that needs the library, as the user wrote it.
      library: name of the library.
      extra: name of the extra of this package that installs the library.
    """
    folders = [word for word in library.split() if Path(word).is_dir()]
    here = f"; the folder {folders[0]}/ here is not this library" if folders else ""
    return UserError(f"{what} needs {library}: pip install 'finetune_jax[{extra}]'{here}")


def require_library(module: ModuleType) -> None:
    """Raises ImportError for a folder without code, which Python imports if no library is there."""
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
        raise ImportError(f"{module.__name__} is a folder, not a library")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` with the closest valid name.

    If no valid name is close, the result lists the first 20 valid names.
    """
    names = [str(v) for v in valid]
    by_lower = {v.lower(): v for v in reversed(names)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {by_lower[close[0]]!r}?"
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f" Valid: {shown}." if names else ""


def tuple_hint(key: str, written: str) -> str:
    """How several values of a key are written, after one value with commas in it; else ""."""
    if "," not in written:
        return ""
    parts = ", ".join(repr(part.strip()) for part in written.split(","))
    return f' Several are written as a tuple: --config.{key}="({parts})".'
