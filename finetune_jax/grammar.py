"""Call expressions such as ``last_k(2, lr=0.1) + norm >> full``: parsed, never evaluated.

Python's own parser reads the text. Only names, calls with literal arguments, ``+`` between calls
and ``>>`` ("then") between sums are accepted. A name may be a door, ``package.module:name``.
Printing is canonical: what `parse` or `parse_sequence` returns, printed with `print_sum` and joined
by `` >> ``, parses to itself.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from finetune_jax.doors import DOOR
from finetune_jax.errors import UserError

# A string literal, or a door outside of string literals. True, False and None are no modules.
_LITERAL_OR_DOOR = re.compile(
    r"(?P<literal>'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\""
    r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\")"
    rf"|(?<![\w.])(?!(?:True|False|None):)(?P<door>{DOOR.pattern})",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Call:
    """``name(*args, **kwargs)`` with literal arguments; kwargs sorted by name."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(parts)})" if parts else self.name


_TERMS = "terms like 'name' or 'name(2, key=0.1)', joined by '+' or '>>'"

Sum = tuple[Call, ...]
"""The terms of a sum, from left to right."""


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    """The call that the text ``name(*args, **kwargs)`` parses to."""
    return Call(name, args, tuple(sorted(kwargs.items())))


def parse(text: str) -> Sum:
    """Returns the terms of a sum from left to right.

    Raises:
      UserError: the text is not a sum of names and calls with literal arguments; the message shows
        the wrong part.
    """
    return _Text(text).sums(sequence=False)[0]


def parse_sequence(text: str) -> tuple[Sum, ...]:
    """Returns the sums between ``>>``, from left to right; raises as `parse` does."""
    return _Text(text).sums(sequence=True)


def print_sum(terms: Sequence[Call]) -> str:
    """The canonical text of a sum."""
    return " + ".join(map(str, terms))


class _Text:
    """A text whose doors are replaced by identifiers, because Python's parser rejects the colon.

    Attributes:
      text: the text as written, for messages.
      replaced: the text for Python's parser.
      doors: ``{identifier: door}``.
    """

    def __init__(self, text: str):
        self.text, self.doors = text, dict[str, str]()
        # A prefix that the text does not hold, so that no other name is taken for a door. Python's
        # parser normalises identifiers, so the search is in the normalised text.
        normal = unicodedata.normalize("NFKC", text)
        prefix = next(p for n in itertools.count() if (p := f"door{n}_") not in normal)

        def identifier(match: re.Match[str]) -> str:
            if match["door"] is None:
                return match[0]
            # As long as the door, so that places in both texts are the same.
            name = f"{prefix}{len(self.doors)}".ljust(len(match["door"]), "_")
            self.doors[name] = match["door"]
            return name

        self.replaced = _LITERAL_OR_DOOR.sub(identifier, text)

    def sums(self, *, sequence: bool) -> tuple[Sum, ...]:
        """The sums between ``>>``, or the only sum."""
        text = self.replaced.rstrip()
        if not text.strip():
            raise UserError(f"cannot read {self.text!r}: expected {_TERMS}, found an empty text")
        # Python's parser takes blanks at the start for an indentation.
        blanks = len(text) - len(text.lstrip())
        try:
            node = ast.parse(text[blanks:], mode="eval").body
        except SyntaxError as error:
            raise self._syntax_error(error, blanks) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"cannot read {self.text!r}: {error}") from None
        sums = []
        while sequence and isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
            sums.append(self._sum(node.right))
            node = node.left
        sums.append(self._sum(node))
        return tuple(reversed(sums))

    def _sum(self, node: ast.expr) -> Sum:
        terms = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            terms.append(self._call(node.right))
            node = node.left
        terms.append(self._call(node))
        return tuple(reversed(terms))

    def _call(self, node: ast.expr) -> Call:
        if isinstance(node, ast.Name):
            return Call(self.doors.get(node.id, node.id))
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise self._error(f"expected {_TERMS}, found {self._written(node)!r}", node)
        name = self.doors.get(node.func.id, node.func.id)
        try:
            args = tuple(ast.literal_eval(a) for a in node.args)
            kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        except (ValueError, TypeError, SyntaxError):
            raise self._error(
                f"the arguments of {name!r} must be plain numbers, strings or lists, found "
                f"{self._written(node)!r}",
                node,
            ) from None
        for number, keyword in enumerate(node.keywords):
            if keyword.arg is None:
                raise self._error(f"{name!r} takes its arguments one by one, not '**'", node)
            if keyword.arg in {k.arg for k in node.keywords[:number]}:
                raise self._error(f"{name!r} is given {keyword.arg!r} twice", keyword)
        return Call(name, args, tuple(sorted(kwargs.items())))

    def _syntax_error(self, error: SyntaxError, blanks: int) -> UserError:
        """The error at the place where Python's parser stopped; `blanks` are left of its text."""
        # The offset is 0 where the text ended too early.
        place = blanks + error.offset - 1 if error.offset else len(self.text.rstrip())
        if re.search("was never closed|unmatched|does not match", error.msg):
            return self._error(f"{error.msg}", place)
        before = self.text[:place].rstrip()
        if place >= len(self.text.rstrip()) and before:
            return self._error(f"the text ends after {before[-1]!r}; expected {_TERMS}", place)
        return self._error(f"expected {_TERMS}", place)

    def _error(self, reason: str, place: ast.expr | ast.keyword | int) -> UserError:
        """The error with a caret under the place: a node, or a number of characters."""
        if not isinstance(place, int):
            line = self.replaced.strip().encode()
            blanks = len(self.replaced) - len(self.replaced.lstrip())
            place = blanks + len(line[: place.col_offset].decode())
        caret = ""
        if len(self.replaced) == len(self.text) and "\n" not in self.text:
            caret = f"\n  {self.text}\n  {' ' * place}^"
        return UserError(f"cannot read {self.text!r}: {reason}{caret}")

    def _written(self, node: ast.expr) -> str:
        """The text of a node, with the doors."""
        return re.sub(r"\w+", lambda m: self.doors.get(m[0], m[0]), ast.unparse(node))
