"""Loads a weight file into a model's variables; nothing of either is passed over in silence."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest
from finetune_jax.models import MODULE_OF_FAMILY
from finetune_jax.models.staged import Resizable, StagedModel
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.weights import Stamp, Weights
from finetune_jax.pretrained.layout import LayoutError
from finetune_jax.pretrained.manifest import Decision, Manifest, ManifestRow
from finetune_jax.pretrained.maps import closest_map, map_of, maps_of
from finetune_jax.pretrained.names import WRAPPERS, NameMap, Target
from finetune_jax.pretrained.save import COLLECTIONS
from finetune_jax.pretrained.stacked import unstack
from finetune_jax.pretrained.surgery import KINDS, fit, misfit


def load(
    path: str | os.PathLike[str],
    family: str,
    init: tree.Tree,
    model: StagedModel | None = None,
    *,
    name_map: str = "",
    reinitialise: Sequence[str] = ("head",),
    reinitialise_head: bool = False,
    resize: Sequence[str] = ("position",),
    copy_rows: Mapping[int, int] | None = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> tuple[dict[str, Any], Manifest]:
    """Puts the tensors of a weight file in the place of a model's initial values.

    Every tensor must belong to exactly one leaf, of the same shape, and every leaf must get its
    tensor. Only two kinds of leaves may differ in shape: those that the model says follow its
    input are fitted, and if one of the stages in `reinitialise` differs, that whole stage keeps its
    initial values.

    Args:
      path: a file in any format of `open_weights`.
      family: the model family, which chooses the name maps.
      init: ``{'params': nested, 'batch_stats': nested}``, the initialised arrays of the model;
        shape structs do for stages that are not in `reinitialise`. `batch_stats` may be empty or
        absent.
      model: says what may differ: which leaves follow its input (`StagedModel.resizable`), which
        stages keep their initial values unless the file is our own and has them (`fresh_stages`),
        which tensors it goes without (`absent_stages`). None allows nothing of that.
      name_map: ``pretrained.name_map``: an origin of the family, or the door of a `NameMap` of
        another package; empty takes the family's name map that knows most of the file's names.
      reinitialise: stages that may differ in shape.
      reinitialise_head: keep the initial values of those stages even if the file's would fit, for
        another task with as many outputs; the file may then lack them.
      resize: which kinds of `surgery.KINDS` are allowed.
      copy_rows: ``{our class: the file's}``, whose columns a head that starts afresh takes over.
      place: called with each leaf (``params/…``) and its values as soon as they are read; what it
        returns is kept in their place. For arrays that go to devices one by one.

    Returns:
      (variables of the structure, shapes and dtypes of `init`, as NumPy arrays; the manifest)

    Raises:
      UserError: the file cannot be read, or does not belong to the model; lists all problems.
    """
    unknown = init.keys() - set(COLLECTIONS)
    if unknown:
        raise ValueError(f"expected the collections {COLLECTIONS}, found {sorted(unknown)}")
    for kind in resize:
        if kind not in KINDS:
            raise UserError(f"pretrained.resize: unknown surgery {kind!r}.{nearest(kind, KINDS)}")
    if name_map:
        name_maps: tuple[NameMap, ...] = (map_of(family, name_map, key="pretrained.name_map"),)
    else:
        name_maps = maps_of(family)
    with unstack(open_weights(path), name_maps) as weights:
        return _Load(
            weights=weights,
            family=family,
            name_maps=name_maps,
            collections=tuple(init),
            leaves=tree.flatten(init),
            stages=frozenset(reinitialise),
            always=reinitialise_head,
            resizable={f"params/{p}": r for p, r in model.resizable.items()} if model else {},
            resize=dict.fromkeys(resize, True),
            sizes=model.sizes if model else {},
            fresh=model.fresh_stages if model else {},
            absent=model.absent_stages if model else {},
            copy_rows=dict(copy_rows or {}),
            place=place or (lambda leaf, array: array),
        ).run()


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype)


def _is_float(dtype: np.dtype) -> bool:
    # JAX's, because NumPy does not count bfloat16 among the floats.
    return bool(jax.dtypes.issubdtype(dtype, np.floating))


def _not_finite(values: np.ndarray) -> int:
    # Counted by the complement: a sum of booleans takes longer than looking at the values.
    return values.size - int(np.count_nonzero(np.isfinite(values)))


Source = tuple[str | None, tuple[int, ...] | None, str | None]


@dataclasses.dataclass
class _Load:
    """One load: matches names, decides about stages, reads values, and collects all problems.

    Attributes:
      weights, family, place: as for `load`.
      name_maps: candidates.
      collections: of the result.
      leaves: initial values by ``collection/leaf path``.
      stages, always: that may be re-initialised, and whether they are in any case.
      resizable, resize: leaves that may be fitted, and the kinds of surgery allowed.
      sizes, fresh, absent: as for `load`.
      copy_rows: of a head that starts afresh.
      problems: found so far.
      homeless: tensors that no leaf wants.
    """

    weights: Weights
    family: str
    name_maps: tuple[NameMap, ...]
    collections: tuple[str, ...]
    leaves: dict[str, Any]
    stages: frozenset[str]
    always: bool
    resizable: dict[str, Resizable]
    resize: dict[str, bool]
    sizes: dict[str, int]
    fresh: dict[str, str]
    absent: dict[str, str]
    copy_rows: dict[int, int]
    place: Callable[[str, np.ndarray], Any]
    problems: list[str] = dataclasses.field(default_factory=list)
    homeless: list[str] = dataclasses.field(default_factory=list)
    rows: list[ManifestRow] = dataclasses.field(default_factory=list)
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> tuple[dict[str, Any], Manifest]:
        names = self.weights.names()
        if not names:
            raise UserError(f"{self.weights.path}: holds no tensors")
        present = {leaf.split("/")[1] for leaf in self.leaves}
        for stage in sorted(self.stages - present):
            raise UserError(f"reinitialise: no stage {stage!r}.{nearest(stage, sorted(present))}")
        stamp = self.weights.stamp()
        self.map = self._choose_map(names)
        # 1. Which tensor goes to which leaves, by name alone.
        targets = self._match(names)
        if self.map.origin == "native":  # our own file has such a stage as it was saved
            saved = {t.leaf.split("/")[1] for found in targets.values() for t in found}
            self.fresh = {s: why for s, why in self.fresh.items() if s not in saved}
        # 2. Which stages start afresh, by shape alone: before a value is read.
        fresh = self._fresh_stages(targets)
        # 3. The tensors, in the file's order; then the leaves that the file lacks.
        for name in names:
            self._place(name, targets[name], fresh)
        named = {target.leaf for found in targets.values() for target in found}
        for leaf in self.leaves:
            if leaf not in named:
                self._lack(leaf, fresh)
        # 4. All problems at once: one at a time, ten would take ten attempts.
        if self.problems:
            count = len(self.problems)
            raise UserError(
                f"{self.weights.path}: {count} problem{'s' * (count > 1)} with loading it as "
                f"{self.map.family} (names of {self.map.origin}):\n  " + "\n  ".join(self.problems)
            )
        manifest = Manifest(
            self.weights.path.name,
            self._digest(stamp),
            self.map.family,
            self.map.origin,
            self.weights.beside,
            tuple(self.rows),
        )
        ordered = tree.unflatten({leaf: self.arrays[leaf] for leaf in self.leaves})
        return {c: ordered.get(c, {}) for c in self.collections}, manifest

    def _digest(self, stamp: Stamp) -> Callable[[], str]:
        """Starts the file's digest; returns what waits for it.

        It takes longer than reading the file, and beside that would slow it down; the model is
        compiled meanwhile, and whoever asks the manifest waits.
        """

        def unchanged() -> str:
            found = self.weights.sha256()
            if self.weights.stamp() != stamp:
                raise UserError(f"{self.weights.path}: was changed while it was read; try again")
            return found

        pool = concurrent.futures.ThreadPoolExecutor(1)
        waiting = pool.submit(unchanged)
        pool.shutdown(wait=False)
        return waiting.result

    def _choose_map(self, names: tuple[str, ...]) -> NameMap:
        best, unmatched = closest_map(self.name_maps, names, self.leaves)
        if len(unmatched) == len(names):
            origins = ", ".join(m.origin for m in self.name_maps)
            foreign = (
                ""
                if self.family in MODULE_OF_FAMILY
                else f" The family is none of this package.{nearest(self.family, MODULE_OF_FAMILY)}"
            )
            shown = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
            raise UserError(
                f"{self.weights.path}: no tensor has a name of the family {self.family!r} (known "
                f"origins: {origins}): {shown}.{foreign}"
            )
        return best

    def _match(self, names: tuple[str, ...]) -> dict[str, tuple[Target, ...]]:
        matches: dict[str, tuple[Target, ...]] = {}
        taken: dict[str, str] = {}
        for name in names:
            matches[name] = () if self.map.ignored(name) is not None else self.map.targets(name)
            for target in matches[name]:
                if target.leaf in taken:
                    self.problems.append(
                        f"tensors {taken[target.leaf]!r} and {name!r} both belong to {target.leaf}"
                    )
                taken.setdefault(target.leaf, name)
        return matches

    def _fresh_stages(self, matches: Mapping[str, tuple[Target, ...]]) -> dict[str, str]:
        """``{stage: reason}`` of the stages that keep their initial values."""
        if self.always:
            return dict.fromkeys(self.stages, "asked for") | self.fresh
        if self.copy_rows:
            return dict.fromkeys(self.stages, "rows of shared classes are copied") | self.fresh
        fresh = dict(self.fresh)
        for name, targets in matches.items():
            for target in targets:
                stage = target.leaf.split("/")[1]
                may = stage in self.stages and target.leaf in self.leaves
                if may and (misfit := self._misfit(name, target)):
                    fresh.setdefault(stage, f"{target.leaf} does not fit: {misfit}")
        return fresh

    def _misfit(self, name: str, target: Target) -> str:
        """Why a tensor does not fit its leaf; '' if it does, perhaps by surgery."""
        found, _ = self.weights.spec(name)
        expected = tuple(self.leaves[target.leaf].shape)
        try:
            turned = target.shape(found, self.sizes)
        except LayoutError as error:
            return f"shape {found} in file: {error}"
        if turned == expected:
            return ""
        how = f" by {target.describe()} of {found}" if target.describe() else ""
        differs = f"shape {turned}{how} in file, {expected} in model"
        if target.leaf in self.resizable:
            problem = misfit(turned, expected, self.resizable[target.leaf], self.resize)
            return f"{differs}; {problem}" if problem else ""
        return differs

    def _place(self, name: str, targets: tuple[Target, ...], fresh: Mapping[str, str]) -> None:
        """Finds one tensor its row or rows, or its problem."""
        shape, dtype = self.weights.spec(name)
        source = (name, shape, str(dtype))
        if not targets:
            reason = self.map.ignored(name)
            if reason is None:
                known = [self._source(leaf) for leaf in self.leaves]
                self.homeless.append(name)
                self.problems.append(
                    f"tensor {name!r} {dtype}{list(shape)} has an unknown name."
                    f"{nearest(name, known)}"
                )
            else:
                self.rows.append(ManifestRow(*source, None, None, None, "dropped", reason))
            return
        values = None
        for target in targets:
            stage = target.leaf.split("/")[1]
            if target.leaf not in self.leaves:
                if stage in self.absent:
                    reason = f"the model has no stage {stage}: {self.absent[stage]}"
                    self.rows.append(ManifestRow(*source, None, None, None, "dropped", reason))
                elif stage in fresh:
                    reason = f"stage {stage} is re-initialised: {fresh[stage]}"
                    self.rows.append(ManifestRow(*source, None, None, None, "dropped", reason))
                else:
                    self.homeless.append(name)
                    self.problems.append(
                        f"tensor {name!r} {dtype}{list(shape)} belongs to {target.leaf}, which the "
                        f"model does not have.{nearest(target.leaf, self.leaves)}"
                    )
            elif stage in self.fresh:
                self._keep(target.leaf, source, self.fresh[stage])
            elif stage in fresh and self.copy_rows:
                self._copy(name, target, source)
            elif stage in fresh:
                self._keep(target.leaf, source, self._misfit(name, target) or fresh[stage])
            elif problem := self._misfit(name, target) or self._dtype_problem(target.leaf, dtype):
                self.problems.append(f"tensor {name!r} for {target.leaf}: {problem}")
            else:
                values = self.weights.read(name) if values is None else values
                self._convert(name, target, source, values)

    def _dtype_problem(self, leaf: str, found: np.dtype) -> str:
        expected = _dtype(self.leaves[leaf])
        if _is_float(found) != _is_float(expected) or (not _is_float(found) and found != expected):
            return f"dtype {found} in file, {expected} in model, and only floats are cast"
        return ""

    def _convert(self, name: str, target: Target, source: Source, values: np.ndarray) -> None:
        """Turns the values of a tensor that fits into those of its leaf."""
        leaf = self.leaves[target.leaf]
        found, expected, wanted = values.dtype, _dtype(leaf), tuple(leaf.shape)
        turned = target.forward(values, self.sizes)
        notes = [target.describe()] if target.describe() else []
        before = _not_finite(turned) if _is_float(found) else 0
        if turned.shape != wanted:
            turned = turned.astype(np.float32)
            turned, how = fit(turned, wanted, self.resizable[target.leaf], self.map.position)
            notes.append(how)
        with np.errstate(over="ignore"):  # what overflows is reported below, with its name
            cast = turned.astype(expected, copy=False)
        after = _not_finite(cast) if found != expected else before
        if after:
            cause = "" if before else f" once cast from {found} to {expected}"
            self.problems.append(
                f"tensor {name!r} for {target.leaf}: {after} of {cast.size} values are NaN or "
                f"infinite{cause}"
            )
            return
        decision: Decision = "transformed" if notes else "loaded"
        if found != expected:
            decision = "cast"
            notes.append(f"{found} to {expected}")
        self._add(decision, target.leaf, source, "; ".join(notes), cast)

    def _lack(self, leaf: str, fresh: Mapping[str, str]) -> None:
        """A leaf that no tensor of the file belongs to."""
        stage = leaf.split("/")[1]
        constant = self.map.constant(leaf)
        if stage in fresh:
            self._keep(leaf, (None, None, None), f"not in the file; {fresh[stage]}")
            return
        wanted = self.leaves[leaf]
        if constant is not None:
            value, reason = constant
            filled = np.full(wanted.shape, value, _dtype(wanted))
            self._add("constant", leaf, (None, None, None), f"{value:g}: {reason}", filled)
            return
        remedy = " (reinitialise_head=True starts it afresh)" if stage in self.stages else ""
        expected = self._source(leaf)
        # Only a tensor that found no place can be the missing one under another name.
        near = nearest(expected, self.homeless)
        self.problems.append(
            f"leaf {leaf} {_dtype(wanted)}{list(wanted.shape)} gets no tensor; expected "
            f"{expected!r}{remedy}.{near if near.startswith(' Did you') else ''}"
        )

    def _copy(self, name: str, target: Target, source: Source) -> None:
        """Initial values of a head's leaf, with the columns of shared classes from the file."""
        values = target.forward(self.weights.read(name), self.sizes)
        array = np.array(self.leaves[target.leaf])
        needed = max(self.copy_rows.values()) + 1
        if values.shape[:-1] != array.shape[:-1] or values.shape[-1] < needed:
            self.problems.append(
                f"tensor {name!r} for {target.leaf}: shape {values.shape} in file, "
                f"{array.shape} in model with rows copied from {needed} classes or more"
            )
            return
        array[..., list(self.copy_rows)] = values[..., list(self.copy_rows.values())]
        count = f"{len(self.copy_rows)} of {array.shape[-1]} classes copied from the file's"
        self._add("reinitialised", target.leaf, source, f"{count} {values.shape[-1]}", array)

    def _source(self, leaf: str) -> str:
        """What the file's origin calls a leaf, within the wrapper that the file uses."""
        names = self.weights.names()
        used = (w for w in WRAPPERS if any(name.startswith(w) for name in names))
        return next(used, "") + (self.map.source(leaf) or leaf)

    def _keep(self, leaf: str, source: Source, reason: str) -> None:
        self._add("reinitialised", leaf, source, reason, np.array(self.leaves[leaf]))

    def _add(
        self, decision: Decision, leaf: str, source: Source, reason: str, array: np.ndarray
    ) -> None:
        self.rows.append(
            ManifestRow(*source, leaf, array.shape, str(array.dtype), decision, reason)
        )
        self.arrays[leaf] = self.place(leaf, array)
