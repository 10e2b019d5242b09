"""Call expressions such as ``last_k(2, lr=0.1) + norm >> full``: parsed, never evaluated.

Python's own parser reads the text; only names, calls with literal arguments, ``+`` between them and
``>>`` ("then") between sums are let through. Printing is canonical: what `parse` or
`parse_sequence` returns, printed with `print_sum` and joined by `` >> ``, parses to itself.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Call:
    """``name(*args, **kwargs)`` with literal arguments; kwargs sorted by name."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(parts)})" if parts else self.name


Sum = tuple[Call, ...]


def parse(text: str) -> Sum:
    """Returns the terms of a sum from left to right.

    Raises:
      UserError: not a sum of names and calls with literal arguments; shows where it went wrong.
    """
    return _sum(_expression(text), text)


def parse_sequence(text: str) -> tuple[Sum, ...]:
    """Returns the sums between ``>>``, from left to right; `parse`'s errors."""
    node, sums = _expression(text), []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        sums.append(_sum(node.right, text))
        node = node.left
    sums.append(_sum(node, text))
    return tuple(reversed(sums))


def print_sum(terms: Sequence[Call]) -> str:
    """The canonical text of a sum."""
    return " + ".join(map(str, terms))


def _expression(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot read {text!r}: {error}") from None


def _sum(node: ast.expr, text: str) -> Sum:
    terms = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(_call(node.right, text))
        node = node.left
    terms.append(_call(node, text))
    return tuple(reversed(terms))


def _call(node: ast.expr, text: str) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise UserError(
            f"cannot read {text!r}: expected terms like 'name' or 'name(2, key=0.1)' joined by "
            f"'+', found {ast.unparse(node)!r}"
        )
    try:
        args = tuple(ast.literal_eval(a) for a in node.args)
        kwargs = tuple(sorted((str(k.arg), ast.literal_eval(k.value)) for k in node.keywords))
    except (ValueError, TypeError, SyntaxError):
        raise UserError(
            f"cannot read {text!r}: the arguments of {node.func.id!r} must be plain numbers, "
            f"strings or lists, found {ast.unparse(node)!r}"
        ) from None
    return Call(node.func.id, args, kwargs)
