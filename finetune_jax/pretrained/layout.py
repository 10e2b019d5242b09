"""Layouts: how an array's axes are named, ordered and joined in a file and in our models.

Written as ``"out in h w -> h w in out"``. Axes in parentheses are one axis of the array, the last
of them varying fastest; ``1`` is an axis of length one. A layout turns an array in either
direction, and a shape without the array.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

# The transposes that nearly every map needs.
CONV = "out in h w -> h w in out"
DENSE = "out in -> in out"


class LayoutError(ValueError):
    """An array or shape that the layout does not describe."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Both sides of a layout's text; parse it with `layout`.

    Attributes:
      text: as written; empty for a layout that changes nothing.
      source, target: axes of the file's array and of ours, each a group of names.
    """

    text: str
    source: tuple[tuple[str, ...], ...]
    target: tuple[tuple[str, ...], ...]

    def shape(
        self, shape: tuple[int, ...], sizes: Mapping[str, int] | None = None
    ) -> tuple[int, ...]:
        """The shape in our models of a file's array.

        Args:
          shape: in the file.
          sizes: lengths of named axes that the file's array has joined; of each group of joined
            axes all but one.

        Raises:
          LayoutError: the array does not fit, or a length is missing.
        """
        if not self.text:
            return shape
        return _joined(self.target, self._sizes(self.source, shape, sizes or {}))

    def forward(self, array: np.ndarray, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """A file's array in our layout; `sizes` and errors as for `shape`.

        A view where it can be: who puts it on a device copies it anyway, and faster.
        """
        if not self.text:
            return np.asarray(array, order="C")
        known = self._sizes(self.source, array.shape, sizes or {})
        return _turn(array, self.source, self.target, known)

    def inverse(self, array: np.ndarray, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """Our array in the file's layout, C-ordered.

        Args:
          array: in our layout.
          sizes: lengths of named axes, such as ``{"heads": 12}``, that our array has joined.

        Raises:
          LayoutError: the array does not fit, or a length is missing.
        """
        if not self.text:
            return np.asarray(array, order="C")
        known = self._sizes(self.target, array.shape, sizes or {})
        return np.asarray(_turn(array, self.target, self.source, known), order="C")

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


def _turn(
    array: np.ndarray,
    source: tuple[tuple[str, ...], ...],
    target: tuple[tuple[str, ...], ...],
    sizes: Mapping[str, int],
) -> np.ndarray:
    before = [name for group in source for name in group if name != "1"]
    after = [name for group in target for name in group if name != "1"]
    split = array.reshape([sizes[name] for name in before])
    turned = split.transpose([before.index(name) for name in after])
    return turned.reshape(_joined(target, sizes))


@functools.cache
def layout(text: str) -> Layout:
    """Parses a layout; raises ValueError for text that is none."""
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
