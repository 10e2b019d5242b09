"""Layouts: order and merging of an array's axes in a file and in our models.

A layout is written as ``"out in h w -> h w in out"``, with the file's axes on the left. Several
names in parentheses are one axis of the array, whose last name varies fastest. ``1`` is an axis of
length one. A layout converts arrays and shapes, in both directions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

# Layouts that nearly every name map uses.
CONV = "out in h w -> h w in out"
DENSE = "out in -> in out"


class LayoutError(ValueError):
    """An array or a shape that does not fit the layout."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parsed layout; use `layout` to parse a text.

    Attributes:
      text: the text; empty for a layout that changes nothing.
      source, target: axes of the file's array and of our array. Each axis is a tuple of names.
    """

    text: str
    source: tuple[tuple[str, ...], ...]
    target: tuple[tuple[str, ...], ...]

    def shape(
        self, shape: tuple[int, ...], sizes: Mapping[str, int] | None = None
    ) -> tuple[int, ...]:
        """Converts the shape of a file's array to the shape of our array.

        Args:
          shape: shape in the file.
          sizes: lengths of named axes that the file's array merges; one name of each merged axis
            may be missing.

        Raises:
          LayoutError: the shape does not fit, or a length is missing.
        """
        if not self.text:
            return shape
        return _joined(self.target, self._sizes(self.source, shape, sizes or {}))

    def forward(self, array: np.ndarray, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """Converts a file's array to our layout; `sizes` and errors as in `shape`.

        The result is a view if possible, because the transfer to a device copies it anyway.
        """
        if not self.text:
            return np.asarray(array, order="C")
        known = self._sizes(self.source, array.shape, sizes or {})
        return _rearrange(array, self.source, self.target, known)

    def inverse(self, array: np.ndarray, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """Converts our array to the file's layout, in C order.

        Args:
          array: array in our layout.
          sizes: lengths of named axes that our array merges, such as ``{"heads": 12}``.

        Raises:
          LayoutError: the array does not fit, or a length is missing.
        """
        if not self.text:
            return np.asarray(array, order="C")
        known = self._sizes(self.target, array.shape, sizes or {})
        return np.asarray(_rearrange(array, self.target, self.source, known), order="C")

    def _sizes(
        self,
        groups: tuple[tuple[str, ...], ...],
        shape: tuple[int, ...],
        given: Mapping[str, int],
    ) -> dict[str, int]:
        if len(groups) != len(shape):
            raise LayoutError(f"{self.text!r} describes {len(groups)} axes, found {list(shape)}")
        sizes: dict[str, int] = {}
        for group, length in zip(groups, shape, strict=True):
            if group == ("1",):
                if length != 1:
                    raise LayoutError(f"{self.text!r}: expected length 1, found {list(shape)}")
                continue
            free = [name for name in group if name not in given] if len(group) > 1 else list(group)
            if len(free) > 1:
                raise LayoutError(f"{self.text!r}: the lengths of {', '.join(free)} are not known")
            rest = math.prod(given[n] for n in group if n not in free)
            if free:
                if rest < 1 or length % rest:
                    raise LayoutError(f"{self.text!r}: {length} is not a multiple of {rest}")
                sizes[free[0]] = length // rest
            elif rest != length:
                raise LayoutError(f"{self.text!r}: expected length {rest}, found {length}")
            sizes |= {n: given[n] for n in group if n not in free}
        return sizes


def _joined(groups: tuple[tuple[str, ...], ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes.get(name, 1) for name in group) for group in groups)


def _rearrange(
    array: np.ndarray,
    source: tuple[tuple[str, ...], ...],
    target: tuple[tuple[str, ...], ...],
    sizes: Mapping[str, int],
) -> np.ndarray:
    old = [name for group in source for name in group if name != "1"]
    new = [name for group in target for name in group if name != "1"]
    split = array.reshape([sizes[name] for name in old])
    transposed = split.transpose([old.index(name) for name in new])
    return transposed.reshape(_joined(target, sizes))


@functools.cache
def layout(text: str) -> Layout:
    """Parses a layout; raises ValueError for a malformed text."""
    if not text:
        return Layout("", (), ())
    sides = text.split("->")
    if len(sides) != 2:
        raise ValueError(f"layout {text!r}: expected 'axes -> axes'")
    source, target = (
        tuple(tuple(g.strip("()").split()) for g in re.findall(r"\([^()]*\)|\S+", side))
        for side in sides
    )
    names = [sorted(n for g in side for n in g if n != "1") for side in (source, target)]
    if names[0] != names[1] or len(set(names[0])) != len(names[0]):
        raise ValueError(f"layout {text!r}: expected the same axes, each once, on both sides")
    return Layout(text, source, target)
