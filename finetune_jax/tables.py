"""Plain text tables, readable numbers, and text of any origin that is safe to print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PLAIN = frozenset("\u00a0\u3000\u200c\u200d")
"""Characters that Python does not call printable, and that change nothing but the text itself."""


def shown(text: Any, lines: bool = False) -> str:
    """Text of any origin as it is printed: what acts on a terminal is written as an escape.

    These are control characters such as ESC, newlines, marks that change the direction of the
    text, invisible characters, and bytes that were not UTF-8.

    Args:
      text: the text, or a value whose `str` is shown.
      lines: whether newlines and tabs stay as they are, in a text of several lines of our own.
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = _PLAIN | {"\n", "\t"} if lines else _PLAIN
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def shorten(text: Any, length: int) -> str:
    """`shown` text of at most `length` characters; the middle becomes an ellipsis."""
    text = shown(text)
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first `left` columns to the left, the others to the right."""
    cells = [[shown(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])


def count(number: float) -> str:
    """1234567 as ``1.23 M``."""
    return _scaled(number, 1000, ("", " k", " M", " G", " T", " P"))


def size(number: float) -> str:
    """Bytes as ``1.2 MiB``."""
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while abs(number) >= base and power < len(units) - 1:
        number, power = number / base, power + 1
    return (f"{number:.0f}" if power == 0 else f"{number:.3g}") + units[power]
