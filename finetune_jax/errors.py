"""The one error a user is meant to read, and the words that point at the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: says what was expected, what was found and the nearest valid name.

    Commands print its text without a traceback and leave with exit status 2; everything else that
    is raised is a bug of ours and keeps its traceback.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest name, or the names if none is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f" Valid: {shown}." if names else ""
