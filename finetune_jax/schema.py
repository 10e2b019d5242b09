"""Checks of values that were read from a file: types, ranges and keys.

A check is a function of a value and of the key under which the value was found. It returns the
value as the package uses it (a list becomes a tuple), or raises a `UserError` that names the key,
what was expected and what was found. A file of this package is described by a table of checks::

    card = record({"version": integer(1), "classes": list_of(text(), least=1)}, {"note": text()})
    card(read_json(path), str(path))
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from finetune_jax.errors import UserError, nearest

Check = Callable[[Any, str], Any]
"""Function of (value, key) to the value; raises UserError."""

LARGEST_SIDE = 4096
"""Side in pixels of the largest square image that a model is given."""

_WORDS = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number",
          float: "a number", type(None): "null"}  # fmt: skip


def found(value: Any) -> str:
    """A short description of a value, for the end of a message: ``found a text 'abc'``."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "found a whole number of more than 18 digits"
    size = f" with {len(value)} members" if isinstance(value, dict | list) else f" {value!r:.80}"
    return f"found {_WORDS.get(type(value), type(value).__name__)}" + (size if value != [] else "")


def anything(value: Any, key: str) -> Any:
    """Accepts every JSON value."""
    del key
    return value


def flag(value: Any, key: str) -> bool:
    """Accepts true and false."""
    if not isinstance(value, bool):
        raise UserError(f"{key}: expected true or false, {found(value)}")
    return value


def integer(least: int = 0, most: int = 2**53) -> Check:
    """Accepts whole numbers in [least, most]."""

    def check(value: Any, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(
                f"{key}: expected a whole number from {least} to {most}, {found(value)}"
            )
        return value

    return check


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """Accepts finite numbers in [least, most]; a whole number stays one."""

    def check(value: Any, key: str) -> float:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not -1e300 < value < 1e300 or not least <= value <= most:
            bounds = "" if math.isinf(least) and math.isinf(most) else f" in [{least:g}, {most:g}]"
            raise UserError(f"{key}: expected a finite number{bounds}, {found(value)}")
        return value

    return check


def text(longest: int = 10_000, choices: Collection[str] = (), least: int = 0) -> Check:
    """Accepts texts of `least` to `longest` characters, or only the texts in `choices`."""

    def check(value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise UserError(f"{key}: expected a text, {found(value)}")
        if choices and value not in choices:
            raise UserError(f"{key}: unknown value {value!r:.80}.{nearest(value[:80], choices)}")
        if not least <= len(value) <= longest:
            raise UserError(
                f"{key}: expected a text of {least} to {longest} characters, found {len(value)} "
                f"characters"
            )
        return value

    return check


def maybe(check: Check) -> Check:
    """Accepts null, and what `check` accepts."""
    return lambda value, key: None if value is None else check(value, key)


def list_of(check: Check, least: int = 0, most: int = 10**6) -> Check:
    """Accepts lists of `least` to `most` members that `check` accepts; returns a tuple."""

    def checked(value: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}: expected a list, {found(value)}")
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise UserError(f"{key}: expected a list of {wanted} members, found {len(value)}")
        return tuple(check(member, f"{key}[{i}]") for i, member in enumerate(value))

    return checked


def mapping(check: Check) -> Check:
    """Accepts objects with any keys whose values `check` accepts."""

    def checked(value: Any, key: str) -> dict[str, Any]:
        return {k: check(v, f"{key}.{k:.80}") for k, v in an_object(value, key).items()}

    return checked


def record(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, rest: bool = False
) -> Check:
    """Accepts objects with the keys of a table.

    Args:
      required: check of each key that must be there.
      optional: check of each key that may be there.
      rest: whether other keys are kept unchecked; otherwise they are refused.
    """
    known = {**required, **(optional or {})}

    def checked(value: Any, key: str) -> dict[str, Any]:
        members, prefix = an_object(value, key), f"{key}." if key else ""
        if missing := [name for name in required if name not in members]:
            raise UserError(f"{prefix}{missing[0]}: missing")
        if unknown := [] if rest else sorted(members.keys() - known.keys()):
            hint = nearest(unknown[0][:80], known)
            where = f"{key}: " if key else ""
            raise UserError(f"{where}unknown key {unknown[0][:80]!r}.{hint}")
        return {k: known.get(k, anything)(v, f"{prefix}{k}") for k, v in members.items()}

    return checked


def an_object(value: Any, key: str) -> dict[str, Any]:
    """Accepts objects with any content."""
    if not isinstance(value, dict):
        raise UserError(f"{key}: expected an object, {found(value)}")
    return value


def check_of(annotation: Any) -> Check:
    """The check of a type annotation; annotations that JSON does not have are not checked."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return list_of(check_of(arguments[0]))
    if origin is tuple and len(set(arguments)) == 1:
        return list_of(check_of(arguments[0]), len(arguments), len(arguments))
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        (other, *more) = [a for a in arguments if a is not type(None)]
        return anything if more else maybe(check_of(other))
    return anything


_SIMPLE: dict[Any, Check] = {
    int: integer(-(2**53)), float: number(), str: text(100_000), bool: flag,
}  # fmt: skip


def options_of(cls: type, values: Any, key: str) -> dict[str, Any]:
    """The arguments of a dataclass, read from an object of its fields.

    Types follow from the annotations of the fields. The class itself checks ranges, in its
    ``__post_init__``, because its values may also come from other places.

    Raises:
      UserError: an unknown or missing field, or a field of another type.
    """
    return _record_of(cls)(values, key)


@functools.cache
def _record_of(cls: type) -> Check:
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # noqa: BLE001  of a class of another package, whose names may be unknown here
        hints = {}
    fields = [f for f in dataclasses.fields(cls) if f.init]
    absent = dataclasses.MISSING
    checks = {f.name: check_of(hints.get(f.name)) for f in fields}
    needed = {f.name for f in fields if f.default is absent and f.default_factory is absent}
    return record(
        {name: check for name, check in checks.items() if name in needed},
        {name: check for name, check in checks.items() if name not in needed},
    )
