"""Name maps: what another project calls a tensor, and where it goes in our models.

A map belongs to a model family and an origin (who wrote the file). Its rules are pairs of name
templates read in both directions: ``layer{i}.{j}.conv{k}.weight`` and
``layer{i}_block{j}/conv{k}/kernel``. ``{path}`` stands for any text, every other field for digits.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from finetune_jax.errors import UserError, nearest

# Transform name -> the order the source axes are put in; `copy` takes any number of axes.
TRANSFORMS: dict[str, tuple[int, ...] | None] = {
    "copy": None,
    "conv_oihw_hwio": (2, 3, 1, 0),
    "dense_transpose": (1, 0),
}


def transform_shape(transform: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape after the transform; None if it does not apply to that many axes."""
    axes = TRANSFORMS[transform]
    if axes is None:
        return shape
    return tuple(shape[a] for a in axes) if len(shape) == len(axes) else None


def apply_transform(transform: str, array: np.ndarray) -> np.ndarray:
    """Returns the array in our layout, C-ordered; ValueError for the wrong number of axes."""
    axes = TRANSFORMS[transform]
    return np.asarray(array if axes is None else array.transpose(axes), order="C")


class Target(NamedTuple):
    """A place in our variables: a leaf path in `params` or `batch_stats`, and how to get there."""

    collection: str
    leaf: str
    transform: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor: source name template, collection, leaf path template, transform."""

    source: str
    collection: str
    leaf: str
    transform: str = "copy"


@dataclasses.dataclass(frozen=True)
class NameMap:
    """All rules of one origin for one family.

    Attributes:
      family: the model family, as in the registry of models.
      origin: who writes files with these names.
      rules: tried in order; the first match counts.
      ignore: (source name template, reason) of tensors that our models have no place for.
      optional_prefix: dropped from source names that start with it.
    """

    family: str
    origin: str
    rules: tuple[Rule, ...]
    ignore: tuple[tuple[str, str], ...] = ()
    optional_prefix: str = ""

    def target(self, name: str) -> Target | None:
        """Where a source tensor goes; None if no rule knows its name."""
        name = name.removeprefix(self.optional_prefix)
        for rule in self.rules:
            match = _pattern(rule.source).fullmatch(name)
            if match:
                return Target(rule.collection, _fill(rule.leaf, match), rule.transform)
        return None

    def ignored(self, name: str) -> str | None:
        """Why a source tensor has no place in our models; None if it is not ignored."""
        name = name.removeprefix(self.optional_prefix)
        for template, reason in self.ignore:
            if _pattern(template).fullmatch(name):
                return reason
        return None

    def source(self, collection: str, leaf: str) -> str | None:
        """What the origin calls a leaf, without the optional prefix; None if it has no name."""
        for rule in self.rules:
            match = rule.collection == collection and _pattern(rule.leaf).fullmatch(leaf)
            if match:
                return _fill(rule.source, match)
        return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, field, text, field, ..., text
    for i, part in enumerate(parts):
        digits = "[0-9]+" if part != "path" else ".+"
        parts[i] = f"(?P<{part}>{digits})" if i % 2 else re.escape(part)
    return re.compile("".join(parts))


def _fill(template: str, match: re.Match[str]) -> str:
    return template.format_map(match.groupdict())


def _native(family: str) -> NameMap:
    """Our own files: the collection, then the leaf path."""
    collections = ("params", "batch_stats")
    return NameMap(family, "native", tuple(Rule(f"{c}/{{path}}", c, "{path}") for c in collections))


def _torch_batch_norm(source: str, leaf: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", "params", f"{leaf}/scale"),
        Rule(f"{source}.bias", "params", f"{leaf}/bias"),
        Rule(f"{source}.running_mean", "batch_stats", f"{leaf}/mean"),
        Rule(f"{source}.running_var", "batch_stats", f"{leaf}/var"),
    )


# github.com/akamaster/pytorch_resnet_cifar10; saved from nn.DataParallel, hence the prefix.
_AKAMASTER = NameMap(
    "resnet_cifar",
    "akamaster",
    (
        Rule("conv1.weight", "params", "stem/conv/kernel", "conv_oihw_hwio"),
        *_torch_batch_norm("bn1", "stem/norm"),
        Rule(
            "layer{i}.{j}.conv{k}.weight",
            "params",
            "layer{i}_block{j}/conv{k}/kernel",
            "conv_oihw_hwio",
        ),
        *_torch_batch_norm("layer{i}.{j}.bn{k}", "layer{i}_block{j}/norm{k}"),
        Rule("linear.weight", "params", "head/kernel", "dense_transpose"),
        Rule("linear.bias", "params", "head/bias"),
    ),
    ignore=(("{path}.num_batches_tracked", "torch's counter; momentum is constant here"),),
    optional_prefix="module.",
)

NAME_MAPS: tuple[NameMap, ...] = (_native("resnet_cifar"), _AKAMASTER, _native("vit"))


def closest_map(family: str, names: Iterable[str]) -> tuple[NameMap, tuple[str, ...]]:
    """The family's origin that knows most of the names, and the names that it does not know.

    Raises UserError if the family has no name map.
    """
    names = tuple(names)
    maps = [m for m in NAME_MAPS if m.family == family]
    if not maps:
        families = dict.fromkeys(m.family for m in NAME_MAPS)
        raise UserError(f"no name map for the family {family!r}.{nearest(family, families)}")
    unmatched = {
        m: tuple(n for n in names if m.ignored(n) is None and m.target(n) is None) for m in maps
    }
    best = min(maps, key=lambda m: len(unmatched[m]))
    return best, unmatched[best]


def find_map(family: str, names: Iterable[str]) -> NameMap:
    """The family's origin that knows every one of the names.

    Raises UserError listing the names that the closest origin does not know.
    """
    best, unmatched = closest_map(family, names)
    if unmatched:
        origins = ", ".join(m.origin for m in NAME_MAPS if m.family == family)
        shown = ", ".join(map(repr, unmatched[:20])) + (", …" if len(unmatched) > 20 else "")
        raise UserError(
            f"{len(unmatched)} tensor names fit no origin of the family {family!r} "
            f"(known: {origins}; closest: {best.origin}): {shown}"
        )
    return best
