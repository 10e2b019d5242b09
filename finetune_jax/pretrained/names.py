"""Name maps: translate tensor names of another project to leaves of our models, and back.

A name map belongs to a model family and an origin (the project that wrote the file). The tables are
in `finetune_jax.pretrained.maps`, one file per family. A rule is a pair of name templates, which is
used in both directions: ``layer{i}.{j}.conv{k}.weight`` and
``params/layer{i}_block{j}/conv{k}/kernel``. The field ``{path}`` matches any text, every other
field matches digits. ``{i+1}`` matches the number i + 1, for two sides that count from different
numbers. ``{i:02}`` has at least two digits. A source ``name[{i}]`` is row i of a tensor whose first
axis numbers the layers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.layout import Layout, layout


class Target(NamedTuple):
    """The leaf that a source tensor, or one part of it, fills.

    Attributes:
      leaf: ``params/…`` or ``batch_stats/…``.
      layout: conversion of the part's axes to the leaf's axes.
      part: (index, count): the part is number `index` of `count` equal parts along the tensor's
        first axis.
    """

    leaf: str
    layout: Layout
    part: tuple[int, int]

    def shape(
        self, shape: tuple[int, ...], sizes: Mapping[str, int] | None = None
    ) -> tuple[int, ...]:
        """Shape of the leaf for a tensor's shape; arguments and errors as in `Layout.shape`."""
        return self.layout.shape(self._cut(shape), sizes)

    def _cut(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        count = self.part[1]
        if count == 1 or not shape or shape[0] % count:
            return shape
        return (shape[0] // count, *shape[1:])

    def forward(self, array: np.ndarray, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """Values of the leaf, from the values of the tensor."""
        index, count = self.part
        if count > 1:
            length = self._cut(array.shape)[0]
            array = array[index * length : (index + 1) * length]
        return self.layout.forward(array, sizes)

    def describe(self) -> str:
        """Description for the manifest; '' if the tensor is unchanged."""
        index, count = self.part
        part = f"part {index + 1} of {count}" if count > 1 else ""
        return "; ".join(text for text in (part, self.layout.text) if text)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The correspondence of one kind of tensor and one kind of leaf.

    Attributes:
      source: template of the tensor's name in the file.
      leaf: template of ``params/…`` or ``batch_stats/…``.
      layout: text of a layout, see `finetune_jax.pretrained.layout`; empty for equal axes.
      part: see `Target`. A tensor that holds several leaves has a rule for each leaf.
    """

    source: str
    leaf: str
    layout: str = ""
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class NameMap:
    """All rules of one origin for one family.

    Attributes:
      family: the model family, as in `Entry.family`.
      origin: the project or class that writes files with these names.
      rules: rules in order. The first rule whose source matches a name applies, together with all
        rules that have the same source.
      ignore: (source name template, reason) of tensors that our models do not have.
      prefix: prefix of the names in a file with a head, such as ``vit.``, which the names in a file
        without a head lack. The rules include the prefix.
      constants: (leaf template, value, reason) of leaves that the origin does not have: with this
        value, our model computes what the origin's model computes.
      position: method by which the origin resizes position embeddings, a key of
        `finetune_jax.pretrained.surgery.POSITION_METHODS`.
      pooled_norm: whether the names show that the final norm follows the pooling (True) or precedes
        it (False); None: they do not show it.
    """

    family: str
    origin: str
    rules: tuple[Rule, ...]
    ignore: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    constants: tuple[tuple[str, float, str], ...] = ()
    position: str = "bicubic_antialias"
    pooled_norm: bool | None = None

    def targets(self, name: str) -> tuple[Target, ...]:
        """The leaves that a source tensor fills; empty if no rule matches its name."""
        for candidate in self._spellings(name):
            if not self._any_source.fullmatch(candidate):
                continue
            for rule in self.rules:
                fields = _read(rule.source, candidate)
                if fields is not None:
                    same = [r for r in self.rules if r.source == rule.source]
                    return tuple(
                        Target(_fill(r.leaf, fields), layout(r.layout), r.part) for r in same
                    )
        return ()

    def ignored(self, name: str) -> str | None:
        """Reason why a source tensor is ignored; None if it is not ignored."""
        for candidate in self._spellings(name):
            for template, reason in self.ignore:
                if _read(template, candidate) is not None:
                    return reason
        return None

    def source(self, leaf: str) -> str | None:
        """The origin's name of the tensor of a leaf; None if the origin has no such tensor."""
        found = self._rule_of(leaf)
        return found and _fill(found[0].source, found[1])

    def place(self, leaf: str) -> tuple[str, Target] | None:
        """(name of the tensor that holds a leaf, the leaf's part of it); None without a tensor."""
        found = self._rule_of(leaf)
        if found is None:
            return None
        rule, fields = found
        return _fill(rule.source, fields), Target(leaf, layout(rule.layout), rule.part)

    def constant(self, leaf: str) -> tuple[float, str] | None:
        """(value, reason) of a leaf that the origin does not have; None for other leaves."""
        for template, value, reason in self.constants:
            if _read(template, leaf) is not None:
                return value, reason
        return None

    def write(
        self, leaves: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Converts our leaves to the origin's tensors.

        Args:
          leaves: ``{'params/…' or 'batch_stats/…': array}``, all leaves of a model.
          sizes: lengths of axes that our layout merges, see `Layout.inverse`.

        Raises:
          UserError: the origin cannot express some leaves; the message has all of them.
        """
        parts: dict[str, dict[int, tuple[int, np.ndarray]]] = {}
        problems = []
        for leaf, array in leaves.items():
            found = self._rule_of(leaf)
            if found:
                rule, fields = found
                converted = layout(rule.layout).inverse(np.asarray(array), sizes)
                index, count = rule.part
                parts.setdefault(_fill(rule.source, fields), {})[index] = (count, converted)
                continue
            constant = self.constant(leaf)
            if constant is None:
                problems.append(f"{leaf} has no name in this origin")
            elif np.any(np.asarray(array) != constant[0]):
                problems.append(f"{leaf} is no longer {constant[0]:g} ({constant[1]})")
        tensors = {}
        for name, found_parts in parts.items():
            count = next(iter(found_parts.values()))[0]
            if len(found_parts) != count:
                problems.append(f"{name} lacks {count - len(found_parts)} of its {count} parts")
            ordered = [found_parts[i][1] for i in sorted(found_parts)]
            tensors[name] = ordered[0] if count == 1 else np.concatenate(ordered)
        if problems:
            raise UserError(
                f"the model cannot be written as {self.family} with the names of {self.origin}:\n  "
                + "\n  ".join(problems)
            )
        return tensors

    def _rule_of(self, leaf: str) -> tuple[Rule, dict[str, str]] | None:
        for rule in self.rules:
            fields = _read(rule.leaf, leaf)
            if fields is not None:
                return rule, fields
        return None

    def _spellings(self, name: str) -> list[str]:
        return [name] if not self.prefix else [name, self.prefix + name]

    @functools.cached_property
    def _any_source(self) -> re.Pattern[str]:
        """Matches every name that a rule matches; much faster than one rule after the other."""

        def pattern(template: str) -> str:
            parts = re.split(_FIELD, template)
            fields = [".+" if field == "path" else "[0-9]+" for field in parts[1::4]]
            text = [re.escape(part) for part in parts[::4]]
            return text[0] + "".join(f + t for f, t in zip(fields, text[1:], strict=True))

        return re.compile("|".join(map(pattern, dict.fromkeys(r.source for r in self.rules))))


_FIELD = r"\{(\w+)([+-]\d+)?(?::0(\d+))?\}"


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """The template as a regular expression, and the offsets of its numbered fields."""
    parts = re.split(_FIELD, template)  # text, (field, offset, digits), text, ..., text
    text, offsets = re.escape(parts[0]), {}
    for i in range(1, len(parts), 4):
        name, offset, digits = parts[i : i + 3]
        if f"(?P<{name}>" in text:
            text += f"(?P={name})"
        else:
            text += f"(?P<{name}>{'.+' if name == 'path' else f'[0-9]{{{digits or 1},}}'})"
        if offset or digits:
            offsets[name] = int(offset or 0)
        text += re.escape(parts[i + 3])
    return re.compile(text), offsets


def _read(template: str, text: str) -> dict[str, str] | None:
    """The values of the template's fields in a text; None if the template does not match."""
    pattern, offsets = _pattern(template)
    match = pattern.fullmatch(text)
    if not match:
        return None
    fields = match.groupdict()
    for name, offset in offsets.items():
        number = int(fields[name]) - offset
        if number < 0:
            return None
        fields[name] = str(number)
    return fields


def _fill(template: str, fields: Mapping[str, str]) -> str:
    def replacement(found: re.Match[str]) -> str:
        name, offset, digits = found.groups()
        if not offset and not digits:
            return fields[name]
        return f"{int(fields[name]) + int(offset or 0):0{digits or 1}d}"

    return re.sub(_FIELD, replacement, template)


def native(family: str) -> NameMap:
    """The name map of our own files, whose tensor names are the leaf paths with collection."""
    collections = ("params", "batch_stats")
    return NameMap(
        family, "native", tuple(Rule(f"{c}/{{path}}", f"{c}/{{path}}") for c in collections)
    )


def batch_norm(source: str, leaf: str) -> tuple[Rule, ...]:
    """Rules of a torch BatchNorm, from the name templates of torch's module and of ours."""
    return (
        Rule(f"{source}.weight", f"params/{leaf}/scale"),
        Rule(f"{source}.bias", f"params/{leaf}/bias"),
        Rule(f"{source}.running_mean", f"batch_stats/{leaf}/mean"),
        Rule(f"{source}.running_var", f"batch_stats/{leaf}/var"),
    )


def layer(source: str, leaf: str, layout: str = "", *, weight: str = "kernel") -> tuple[Rule, ...]:
    """Rules of a torch layer with weight and bias, from the name templates of both modules."""
    return (
        Rule(f"{source}.weight", f"params/{leaf}/{weight}", layout),
        Rule(f"{source}.bias", f"params/{leaf}/bias"),
    )


COUNTER = (
    "{path}.num_batches_tracked",
    "torch counts batches; the momentum here is constant",
)
