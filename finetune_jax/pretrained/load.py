"""Loads a weight file into a model's variables; nothing of either is passed over in silence."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.manifest import Decision, Manifest, Row
from finetune_jax.pretrained.names import (
    NAME_MAPS,
    apply_transform,
    closest_map,
    transform_shape,
)
from finetune_jax.pretrained.save import COLLECTIONS
from finetune_jax.pretrained.weights import Weights


def load(
    path: str | os.PathLike[str],
    family: str,
    init: tree.Tree,
    *,
    reinitialise: Sequence[str] = ("head",),
    reinitialise_head: bool = False,
) -> tuple[dict[str, Any], Manifest]:
    """Puts the tensors of a weight file in the place of a model's initial values.

    Every tensor must belong to exactly one leaf, of the same shape, and every leaf must get its
    tensor. The stages in `reinitialise` alone may differ in shape: if one of their leaves does, the
    whole stage keeps its initial values.

    Args:
      path: a file in any format of `open_weights`.
      family: the model family, which chooses the name maps.
      init: ``{'params': nested, 'batch_stats': nested}``, the initialised arrays of the model;
        shape structs do for stages that are not in `reinitialise`. `batch_stats` may be empty or
        absent.
      reinitialise: stages that may differ in shape.
      reinitialise_head: keep the initial values of those stages even if the file's would fit, for
        another task with as many outputs; the file may then lack them.

    Returns:
      (variables of the structure, shapes and dtypes of `init`, as NumPy arrays; the manifest)

    Raises:
      UserError: the file cannot be read, or does not belong to the model; lists all problems.
    """
    with open_weights(path) as weights:
        return _Load(weights, family, init, tuple(reinitialise), reinitialise_head).run()


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype)


def _is_float(dtype: np.dtype) -> bool:
    # JAX's, because NumPy does not count bfloat16 among the floats.
    return bool(jax.dtypes.issubdtype(dtype, np.floating))


@dataclasses.dataclass(frozen=True)
class _Match:
    """A source tensor and the leaf it goes to: ``params/...`` or ``batch_stats/...``."""

    name: str
    leaf: str
    transform: str


class _Load:
    """One load: matches names, decides about stages, reads values, and collects all problems."""

    def __init__(
        self,
        weights: Weights,
        family: str,
        init: tree.Tree,
        reinitialise: tuple[str, ...],
        always: bool,
    ) -> None:
        self.weights = weights
        unknown = init.keys() - set(COLLECTIONS)
        if unknown:
            raise ValueError(f"expected the collections {COLLECTIONS}, found {sorted(unknown)}")
        self.collections = tuple(init)
        self.leaves = tree.flatten(init)  # keyed by collection/leaf path
        self.stages = frozenset(reinitialise)
        self.always = always
        self.problems: list[str] = []
        self.homeless: list[str] = []  # tensors that no leaf wants
        self.rows: list[Row] = []
        self.arrays: dict[str, np.ndarray] = {}
        names = weights.names()
        if not names:
            raise UserError(f"{weights.path}: holds no tensors")
        present = {path.split("/")[1] for path in self.leaves}
        for stage in sorted(self.stages - present):
            raise UserError(f"reinitialise: no stage {stage!r}.{nearest(stage, sorted(present))}")
        self.map, unmatched = closest_map(family, names)
        if len(unmatched) == len(names):
            origins = ", ".join(m.origin for m in NAME_MAPS if m.family == family)
            shown = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
            raise UserError(
                f"{weights.path}: no tensor has a name of the family {family!r} (known origins: "
                f"{origins}): {shown}"
            )

    def run(self) -> tuple[dict[str, Any], Manifest]:
        # 1. Which tensor goes to which leaf, by name alone.
        matches = self._match()
        # 2. Which stages start afresh, by shape alone: before a value is read.
        fresh = self._fresh_stages(matches)
        # 3. The tensors, in the file's order; then the leaves that the file lacks.
        for name in self.weights.names():
            self._place(name, matches.get(name), fresh)
        named = {match.leaf for match in matches.values()}
        for leaf in self.leaves:
            if leaf not in named:
                self._lack(leaf, fresh)
        # 4. All problems at once: a conversion that fails ten times is ten times as long to fix.
        if self.problems:
            count = len(self.problems)
            raise UserError(
                f"{self.weights.path}: {count} problem{'s' * (count > 1)} with loading it as "
                f"{self.map.family} (names of {self.map.origin}):\n  " + "\n  ".join(self.problems)
            )
        with self.weights.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = Manifest(
            self.weights.path.name,
            sha256,
            self.map.family,
            self.map.origin,
            self.weights.beside,
            tuple(self.rows),
        )
        ordered = tree.unflatten({leaf: self.arrays[leaf] for leaf in self.leaves})
        return {c: ordered.get(c, {}) for c in self.collections}, manifest

    def _match(self) -> dict[str, _Match]:
        matches: dict[str, _Match] = {}
        taken: dict[str, str] = {}
        for name in self.weights.names():
            target = self.map.target(name)
            if target is None or self.map.ignored(name) is not None:
                continue
            match = _Match(name, f"{target.collection}/{target.leaf}", target.transform)
            if match.leaf in taken:
                self.problems.append(
                    f"tensors {taken[match.leaf]!r} and {name!r} both belong to {match.leaf}"
                )
            taken.setdefault(match.leaf, name)
            matches[name] = match
        return matches

    def _fresh_stages(self, matches: Mapping[str, _Match]) -> dict[str, str]:
        """``{stage: reason}`` of the stages that keep their initial values."""
        if self.always:
            return dict.fromkeys(self.stages, "asked for")
        fresh: dict[str, str] = {}
        for match in matches.values():
            stage = match.leaf.split("/")[1]
            if stage in self.stages and match.leaf in self.leaves and self._misfit(match):
                first = f"{match.leaf} does not fit: {self._misfit(match)}"
                fresh.setdefault(stage, first)
        return fresh

    def _misfit(self, match: _Match) -> str:
        """How a tensor's shape differs from its leaf's; '' if it fits."""
        found, _ = self.weights.spec(match.name)
        turned = transform_shape(match.transform, found)
        expected = tuple(self.leaves[match.leaf].shape)
        if turned == expected:
            return ""
        how = "" if match.transform == "copy" else f" by {match.transform} of {found}"
        return f"shape {turned or found}{how} in file, {expected} in model"

    def _place(self, name: str, match: _Match | None, fresh: Mapping[str, str]) -> None:
        """Finds one tensor its row, or its problem."""
        shape, dtype = self.weights.spec(name)
        source = (name, shape, str(dtype))
        if match is None:
            reason = self.map.ignored(name)
            if reason is None:
                known = [self._source(leaf) for leaf in self.leaves]
                self.homeless.append(name)
                self.problems.append(
                    f"tensor {name!r} {dtype}{list(shape)} has an unknown name."
                    f"{nearest(name, known)}"
                )
            else:
                self.rows.append(Row(*source, None, None, None, "dropped", reason, None))
            return
        stage = match.leaf.split("/")[1]
        if match.leaf not in self.leaves:
            if stage in fresh:
                reason = f"stage {stage} is re-initialised: {fresh[stage]}"
                self.rows.append(Row(*source, None, None, None, "dropped", reason, None))
            else:
                self.homeless.append(name)
                self.problems.append(
                    f"tensor {name!r} {dtype}{list(shape)} belongs to {match.leaf}, which the "
                    f"model does not have.{nearest(match.leaf, self.leaves)}"
                )
            return
        if stage in fresh:
            self._keep(match.leaf, source, self._misfit(match) or fresh[stage])
            return
        if misfit := self._misfit(match):
            self.problems.append(f"tensor {name!r} for {match.leaf}: {misfit}")
            return
        self._read(match, source)

    def _read(self, match: _Match, source: tuple[str, tuple[int, ...], str]) -> None:
        """Reads the values of a tensor that fits by name and shape."""
        expected = _dtype(self.leaves[match.leaf])
        _, found = self.weights.spec(match.name)
        if _is_float(found) != _is_float(expected) or (not _is_float(found) and found != expected):
            self.problems.append(
                f"tensor {match.name!r} for {match.leaf}: dtype {found} in file, {expected} in "
                "model, and only floats are cast"
            )
            return
        values = apply_transform(match.transform, self.weights.read(match.name))
        with np.errstate(over="ignore"):  # what overflows is reported below, with its name
            cast = values.astype(expected, copy=False)
        if _is_float(found):
            before, after = (int((~np.isfinite(a)).sum()) for a in (values, cast))
            if after:
                cause = "" if before else f" once cast from {found} to {expected}"
                self.problems.append(
                    f"tensor {match.name!r} for {match.leaf}: {after} of {values.size} values are "
                    f"NaN or infinite{cause}"
                )
                return
        notes = [] if match.transform == "copy" else [match.transform]
        decision: Decision = "transformed" if notes else "loaded"
        if found != expected:
            decision = "cast"
            notes.append(f"{found} to {expected}")
        self._add(decision, match.leaf, source, "; ".join(notes), cast)

    def _lack(self, leaf: str, fresh: Mapping[str, str]) -> None:
        """A leaf that no tensor of the file belongs to."""
        stage = leaf.split("/")[1]
        if stage in fresh:
            self._keep(leaf, (None, None, None), f"not in the file; {fresh[stage]}")
            return
        wanted = self.leaves[leaf]
        remedy = " (reinitialise_head=True starts it afresh)" if stage in self.stages else ""
        # Only a tensor that found no place can be the missing one under another name.
        near = nearest(self._source(leaf), self.homeless)
        self.problems.append(
            f"leaf {leaf} {_dtype(wanted)}{list(wanted.shape)} gets no tensor; expected "
            f"{self._source(leaf)!r}{remedy}.{near if near.startswith(' Did you') else ''}"
        )

    def _source(self, leaf: str) -> str:
        """What the file's origin calls a leaf, with the prefix if the file uses it."""
        collection, path = leaf.split("/", 1)
        name = self.map.source(collection, path) or leaf
        prefix = self.map.optional_prefix
        used = prefix and any(n.startswith(prefix) for n in self.weights.names())
        return prefix + name if used else name

    def _keep(self, leaf: str, source: tuple[Any, Any, Any], reason: str) -> None:
        self._add("reinitialised", leaf, source, reason, np.array(self.leaves[leaf]))

    def _add(
        self,
        decision: Decision,
        leaf: str,
        source: tuple[Any, Any, Any],
        reason: str,
        array: np.ndarray,
    ) -> None:
        self.arrays[leaf] = array
        digest = tree.checksum(array)
        self.rows.append(
            Row(*source, leaf, array.shape, str(array.dtype), decision, reason, digest)
        )
