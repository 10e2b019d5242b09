"""Loads a weight file into a model's variables, and reports every tensor and every leaf."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest, tuple_hint
from finetune_jax.models.staged import Resizable, StagedModel
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.sharded import is_shard
from finetune_jax.pretrained.formats.weights import Stamp, Weights
from finetune_jax.pretrained.layout import LayoutError
from finetune_jax.pretrained.manifest import Decision, Manifest, ManifestRow
from finetune_jax.pretrained.maps import map_of, maps_of
from finetune_jax.pretrained.matching import choose_map, look_at, match, other_models
from finetune_jax.pretrained.names import NameMap, Target
from finetune_jax.pretrained.prefixes import Belongs
from finetune_jax.pretrained.save import COLLECTIONS
from finetune_jax.pretrained.selection import (
    Chosen,
    Selection,
    choose_tensors,
    close_name,
    ignoring,
)
from finetune_jax.pretrained.stacked import unstack
from finetune_jax.pretrained.surgery import KINDS, fit, misfit
from finetune_jax.pretrained.values import bad_values
from finetune_jax.progress import say


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
    read_values: bool = True,
    model_name: str = "",
    selection: Selection = Selection(),  # noqa: B008  # immutable
) -> tuple[dict[str, Any], Manifest]:
    """Replaces the initial values of a model by the tensors of a weight file.

    Every tensor must belong to exactly one leaf of the same shape, and every leaf must get a
    tensor. There are two exceptions. Leaves whose shape depends on the model's input are resized.
    A stage in `reinitialise` keeps all its initial values if one of its leaves differs in shape.

    Args:
      path: a file in any format of `open_weights`.
      family: the model family, whose name maps are tried.
      init: ``{'params': nested, 'batch_stats': nested}``, the initial values of the model. Stages
        that are not in `reinitialise` may hold shape structs. `batch_stats` may be empty or absent.
      model: model that declares the allowed differences: leaves that may be resized
        (`StagedModel.resizable`), stages that keep their initial values unless the file is one of
        our own and has these stages (`fresh_stages`), and stages whose tensors are dropped
        (`absent_stages`). None allows no such difference.
      name_map: ``pretrained.name_map``: an origin of the family, or the door of a `NameMap` of
        another package; empty takes the family's name map that knows most of the file's names.
      reinitialise: stages that may differ in shape.
      reinitialise_head: whether the stages in `reinitialise` keep their initial values even if the
        file's values would fit, as for a new task with equally many outputs. The file may then lack
        these stages.
      resize: allowed kinds of surgery, out of `surgery.KINDS`.
      copy_rows: ``{our class number: the file's class number}`` of the classes whose columns a new
        head copies from the file.
      place: function called with each leaf (``params/…``) and its values as soon as the values are
        read. The result takes the place of the values, for example an array on a device.
      read_values: without it, the file is compared with the model by names, shapes and dtypes: all
        tensors are taken to hold zeros, and the manifest has no digest.
      model_name: ``model.name``; if the file does not fit, the error names other models that do.
      selection: which tensors of the file are the model's. A prefix of all names that the name map
        knows is removed. The prefix, and the choice between several sets of weights, are printed.

    Returns:
      (variables with the structure, shapes and dtypes of `init`, as NumPy arrays or as the results
      of `place`; the manifest)

    Raises:
      UserError: the file cannot be read, or does not fit the model; the message has all problems.
    """
    unknown = init.keys() - set(COLLECTIONS)
    if unknown:
        raise ValueError(f"expected the collections {COLLECTIONS}, found {sorted(unknown)}")
    for kind in resize:
        if kind not in KINDS:
            hint = tuple_hint("pretrained.resize", kind)
            raise UserError(
                f"pretrained.resize: unknown surgery {kind!r}.{nearest(kind, KINDS)}{hint}"
            )
    if name_map:
        name_maps: tuple[NameMap, ...] = (map_of(family, name_map, key="pretrained.name_map"),)
    else:
        name_maps = maps_of(family)
    leaves = tree.flatten(init)
    absent = model.absent_stages if model else {}

    def belongs(name_map: NameMap, name: str) -> bool:
        targets = name_map.targets(name) or name_map.targets(f"{name}[0]")
        return any(t.leaf in leaves or t.leaf.split("/")[1] in absent for t in targets)

    with open_weights(path, selection.weights) as file:
        weights = file if read_values else file.without_values()
        chosen = choose_tensors(weights, name_maps, belongs, selection)
        for line in chosen.naming.said:
            say(f"{weights.path.name}: {line}")
        return _Load(
            weights=unstack(weights, name_maps, chosen.naming.short, chosen.ignored),
            family=family,
            name_maps=name_maps,
            collections=tuple(init),
            leaves=leaves,
            stages=frozenset(reinitialise),
            always=reinitialise_head,
            resizable={f"params/{p}": r for p, r in model.resizable.items()} if model else {},
            resize=dict.fromkeys(resize, True),
            sizes=model.sizes if model else {},
            fresh=model.fresh_stages if model else {},
            absent=absent,
            pooled_norm=None if name_map or model is None else model.pooled_norm,
            copy_rows=dict(copy_rows or {}),
            place=place or (lambda leaf, array: array),
            read_values=read_values,
            model_name=model_name,
            chosen=chosen,
            belongs=belongs,
        ).run()


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype)


def _is_float(dtype: np.dtype) -> bool:
    # Not np.issubdtype, for which bfloat16 is no float.
    return bool(jnp.issubdtype(dtype, jnp.floating))


# Names that torch gives to the parts of a weight, and the call that makes one weight of them.
_PARTS = (
    (r"parametrizations\.\w+\.(original\d*|\d+\..*)", "parametrize.remove_parametrizations(layer, "
     "'weight')"),
    (r"weight_[gv]", "remove_weight_norm(layer)"),
    (r"weight_(orig|u)", "remove_spectral_norm(layer), or prune.remove(layer, 'weight')"),
    (r"weight_mask", "prune.remove(layer, 'weight')"),
)  # fmt: skip


def _reparametrized(unknown: Sequence[str]) -> str:
    """What to do about weights that torch keeps in parts, as weight_norm does; else ""."""
    for pattern, call in _PARTS:
        found = [name for name in unknown if re.search(rf"(^|\.){pattern}$", name)]
        if found:
            return (
                f"{found[0]} is a part of a weight that torch computes (weight_norm, spectral_norm "
                f"or pruning): save the model after torch.nn.utils.{call} for each such layer"
            )
    return ""


# Number of problems from which on the file is probably the file of another model.
_MANY_PROBLEMS = 10
_MOST_PROBLEMS = 60  # largest number of lines in an error

_Source = tuple[str | None, tuple[int, ...] | None, str | None]


@dataclasses.dataclass
class _Load:
    """One load: matches names, decides about stages, reads values, and collects all problems.

    Attributes:
      weights: the open file.
      family: the model family.
      name_maps: name maps to choose from.
      collections: names of the collections of the result.
      leaves: initial values by ``collection/leaf path``.
      stages: stages that may be re-initialised.
      always: whether `stages` are re-initialised even if the file fits.
      resizable: leaves that may be resized, by ``collection/leaf path``.
      resize: the allowed kinds of surgery.
      sizes, fresh, absent: `sizes`, `fresh_stages` and `absent_stages` of the model.
      pooled_norm: `pooled_norm` of the model; None if the user chose the name map.
      copy_rows, place, read_values, model_name: see `load`.
      chosen: which tensors of the file are the model's, and their prefix.
      belongs: whether a name map knows a name as that of a leaf of the model.
      problems: messages of the problems found so far.
      unused: names of tensors that belong to no leaf.
      unknown: names in `unused` that the name map does not know at all.
      missing: names of the tensors that leaves lack, by leaf.
      rows: rows of the manifest.
      arrays: the result, by ``collection/leaf path``.
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
    sizes: Mapping[str, int]
    fresh: Mapping[str, str]
    absent: Mapping[str, str]
    pooled_norm: bool | None
    copy_rows: dict[int, int]
    place: Callable[[str, np.ndarray], Any]
    read_values: bool
    model_name: str
    chosen: Chosen
    belongs: Belongs
    problems: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: list[ManifestRow] = dataclasses.field(default_factory=list)
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> tuple[dict[str, Any], Manifest]:
        slots = frozenset(self.chosen.slots)
        names = tuple(name for name in self.weights.names() if name not in slots)
        if not names:
            raise UserError(f"{self.weights.path}: holds no tensors")
        present = {leaf.split("/")[1] for leaf in self.leaves}
        for stage in sorted(self.stages - present):
            raise UserError(f"no stage {stage!r}.{nearest(stage, sorted(present))}")
        stamp = self.weights.stamp()
        self.map = choose_map(
            self.weights,
            names,
            self.family,
            self.name_maps,
            self.chosen,
            self.leaves,
            self.belongs,
            self.model_name,
        )
        self._require_norm()
        # 1. Match tensors and leaves by name.
        targets, self.problems = match(names, self.map, self.chosen, self.leaves)
        if self.map.origin == "native":  # our own files hold trained values of such stages
            saved = {t.leaf.split("/")[1] for found in targets.values() for t in found}
            self.fresh = {s: why for s, why in self.fresh.items() if s not in saved}
        # 2. Decide by shape which stages keep their initial values, before any value is read.
        fresh = self._fresh_stages(targets)
        targets = {name: self._needed(name, found, fresh) for name, found in targets.items()}
        named = {target.leaf for found in targets.values() for target in found}
        self.missing = {
            leaf: self._source(leaf)
            for leaf in self.leaves
            if leaf not in named
            and leaf.split("/")[1] not in fresh
            and self.map.constant(leaf) is None
        }
        # 3. Load the tensors in the file's order, then fill the leaves that the file lacks.
        for name in names:
            self._place(name, targets[name], fresh)
        for leaf in self.leaves:
            if leaf not in named:
                self._lack(leaf, fresh)
        # 4. Raise all problems at once, so that a user can solve them in one attempt.
        if self.problems:
            self._raise()
        manifest = Manifest(
            self.weights.path.name,
            self._digest(stamp) if self.read_values else str,
            self.map.family,
            self.map.origin,
            (*self.weights.other_entries, *self.chosen.slots),
            tuple(self.rows),
            self.chosen.naming.weights,
            self.chosen.naming.prefix,
        )
        ordered = tree.unflatten({leaf: self.arrays[leaf] for leaf in self.leaves})
        return {c: ordered.get(c, {}) for c in self.collections}, manifest

    def _require_norm(self) -> None:
        """Refuses a file whose names show another order of pooling and final norm.

        All names and shapes fit then, and the head reads other features.
        """
        theirs = self.map.pooled_norm
        if None in (theirs, self.pooled_norm) or theirs == self.pooled_norm:
            return
        order = ("before", "after")
        name = self._source("params/norm/scale")
        options = "pooling='gap', norm_pooled=True" if theirs else "norm_pooled=False"
        raise UserError(
            f"{self.weights.path}: {name!r} normalises {order[bool(theirs)]} the tokens are pooled"
            f"{' (an average of all patches)' if theirs else ''}, and the model normalises "
            f"{order[not theirs]}: set the options {options} in model.name, as in "
            f"model.name='vit({'heads=…, ' if theirs else ''}{options})', or load the file as it "
            f"is with pretrained.name_map={self.map.origin}"
        )

    def _raise(self) -> NoReturn:
        count = len(self.problems)
        lacking = {leaf.split("/")[1] for leaf in self.missing}
        drops = bool(self.unknown) and lacking <= self.stages
        fitting = "" if drops else other_models(self.weights, self.model_name)
        # Where the file is that of another model, a few problems say enough.
        most = _MANY_PROBLEMS if fitting else _MOST_PROBLEMS
        lines = self.problems[:most]
        if count > most:
            lines.append(f"… and {count - most} more")
        text = (
            f"{self.weights.path}: {count} problem{'s' * (count > 1)} with loading it as "
            f"{self.map.family} (names of {self.map.origin}):\n  " + "\n  ".join(lines)
        )
        if other := _reparametrized(self.unknown):
            text += f"\n{other}"
        elif drops:
            others = set(self.weights.names()) - set(self.unknown)
            text += f"\n{ignoring(self.unknown, others, lacking)}"
        elif is_shard(self.weights.path.name):
            text += "\nThe file is one of several shards: give the index of all, ….index.json"
        elif fitting:
            text += f"\n{fitting}"
        elif count > _MANY_PROBLEMS:
            text += f"\n{look_at(self.weights)}"
        raise UserError(text)

    def _digest(self, stamp: Stamp) -> Callable[[], str]:
        """Starts to compute the file's digest; returns a function that waits for the result.

        The digest takes longer than the load, so a thread computes the digest while the caller
        compiles the model. The thread starts after the load, which it would slow down.
        """

        def unchanged() -> str:
            found = self.weights.sha256()
            if self.weights.stamp() != stamp:
                raise UserError(f"{self.weights.path}: changed while it was read; try again")
            return found

        pool = concurrent.futures.ThreadPoolExecutor(1)
        waiting = pool.submit(unchanged)
        pool.shutdown(wait=False)
        return waiting.result

    def _needed(
        self, name: str, targets: tuple[Target, ...], fresh: Mapping[str, str]
    ) -> tuple[Target, ...]:
        """The leaves that a tensor fills; none for a tensor that is left out.

        A tensor that the user drops and the model needs is a problem.
        """
        if name not in self.chosen.left_out:
            return targets
        needed = [
            target
            for target in targets
            if target.leaf in self.leaves and target.leaf.split("/")[1] not in fresh
        ]
        if name not in self.chosen.ignored or not needed:
            return ()
        stage = needed[0].leaf.split("/")[1]
        remedy = (
            "; --config.pretrained.new_head=True draws a new head" if stage in self.stages else ""
        )
        self.problems.append(
            f"pretrained.ignore matches tensor {name!r}, which fills {needed[0].leaf}{remedy}"
        )
        return tuple(needed)

    def _fresh_stages(self, matches: Mapping[str, tuple[Target, ...]]) -> dict[str, str]:
        """``{stage: reason}`` of the stages that keep their initial values."""
        if self.always:
            return {**dict.fromkeys(self.stages, "as requested"), **self.fresh}
        if self.copy_rows:
            return {**dict.fromkeys(self.stages, "rows of shared classes are copied"), **self.fresh}
        fresh = dict(self.fresh)
        for name, targets in matches.items():
            for target in targets:
                stage = target.leaf.split("/")[1]
                may = stage in self.stages and target.leaf in self.leaves
                if may and (misfit := self._misfit(name, target)):
                    fresh.setdefault(stage, f"{target.leaf} does not fit: {misfit}")
        return fresh

    def _misfit(self, name: str, target: Target) -> str:
        """Reason why a tensor does not fit its leaf; '' if it fits, with or without surgery."""
        found, _ = self.weights.spec(name)
        expected = tuple(self.leaves[target.leaf].shape)
        try:
            turned = target.shape(found, self.sizes)
        except LayoutError as error:
            return f"shape {found} in file: {error}"
        if turned == expected:
            return ""
        if 0 in found:
            return (
                f"shape {found} in file: it has no values, as in the files of DeepSpeed's ZeRO-3 "
                "and FSDP, which have their values elsewhere; gather them into one file first"
            )
        how = f" by {target.describe()} of {found}" if target.describe() else ""
        differs = f"shape {turned}{how} in file, {expected} in model"
        if target.leaf in self.resizable:
            problem = misfit(turned, expected, self.resizable[target.leaf], self.resize)
            return f"{differs}; {problem}" if problem else ""
        return differs

    def _place(self, name: str, targets: tuple[Target, ...], fresh: Mapping[str, str]) -> None:
        """Adds the rows of one tensor to the manifest, or a problem."""
        shape, dtype = self.weights.spec(name)
        source = (name, shape, str(dtype))
        if name in self.chosen.left_out:
            reason = self.chosen.left_out[name]
            self.rows.append(ManifestRow(*source, None, None, None, "dropped", reason))
            return
        if not targets:
            ignored = self.map.ignored(self.chosen.naming.short(name))
            if ignored is None:
                self.unused.append(name)
                self.unknown.append(name)
                # Only the tensor of a leaf that lacks one can be this tensor under another name.
                near = close_name(name, self.missing.values())
                self.problems.append(
                    f"tensor {name!r} {dtype}{list(shape)} has an unknown name.{near}"
                )
            else:
                self.rows.append(ManifestRow(*source, None, None, None, "dropped", ignored))
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
                    self.unused.append(name)
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

    def _convert(self, name: str, target: Target, source: _Source, values: np.ndarray) -> None:
        """Computes the values of a leaf from a tensor that fits, and adds its row."""
        leaf = self.leaves[target.leaf]
        found, expected, wanted = values.dtype, _dtype(leaf), tuple(leaf.shape)
        turned = target.forward(values, self.sizes)
        notes = [target.describe()] if target.describe() else []
        before = bad_values(target.leaf, turned)
        if turned.shape != wanted:
            turned = turned.astype(np.float32)
            turned, how = fit(turned, wanted, self.resizable[target.leaf], self.map.position)
            notes.append(how)
        with np.errstate(over="ignore"):  # an overflow is reported below, with the tensor's name
            cast = turned.astype(expected, copy=False)
        after = before
        if not before and (found != expected or len(notes) > bool(target.describe())):
            after = bad_values(target.leaf, cast)
        if after:
            cause = "" if before or found == expected else f" once cast from {found} to {expected}"
            self.problems.append(f"tensor {name!r} for {target.leaf}: {after}{cause}")
            return
        decision: Decision = "transformed" if notes else "loaded"
        if found != expected:
            decision = "cast"
            notes.append(f"{found} to {expected}")
        self._add(decision, target.leaf, source, "; ".join(notes), cast)

    def _lack(self, leaf: str, fresh: Mapping[str, str]) -> None:
        """Fills a leaf that has no tensor in the file, or adds a problem."""
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
        remedy = (
            " (--config.pretrained.new_head=True draws new values)" if stage in self.stages else ""
        )
        expected = self.missing[leaf]
        # Only a tensor that belongs to no leaf can be the missing tensor under another name.
        near = close_name(expected, self.unused)
        self.problems.append(
            f"leaf {leaf} {_dtype(wanted)}{list(wanted.shape)} gets no tensor; expected "
            f"{expected!r}{remedy}.{near}"
        )

    def _copy(self, name: str, target: Target, source: _Source) -> None:
        """Sets a leaf of a new head: initial values, with the file's columns of shared classes."""
        values = target.forward(self.weights.read(name), self.sizes)
        array = np.array(self.leaves[target.leaf])
        needed = max(self.copy_rows.values()) + 1
        if values.shape[:-1] != array.shape[:-1] or values.shape[-1] < needed:
            self.problems.append(
                f"tensor {name!r} for {target.leaf}: shape {values.shape} in file, "
                f"{array.shape} in model with rows copied from {needed} classes or more"
            )
            return
        copied = values[..., list(self.copy_rows.values())]
        if bad := bad_values(target.leaf, copied):
            self.problems.append(f"tensor {name!r} for {target.leaf}: {bad}")
            return
        array[..., list(self.copy_rows)] = copied
        count = f"{len(self.copy_rows)} of {array.shape[-1]} classes copied from the file's"
        self._add("reinitialised", target.leaf, source, f"{count} {values.shape[-1]}", array)

    def _source(self, leaf: str) -> str:
        """Tensor name of a leaf in the file's origin, with the prefix that the file uses."""
        source = self.map.source(leaf) or leaf
        own = self.map.prefix
        if own and not any(
            self.chosen.naming.short(n).startswith(own) for n in self.weights.names()
        ):
            source = source.removeprefix(own)
        return self.chosen.naming.prefix + source

    def _keep(self, leaf: str, source: _Source, reason: str) -> None:
        self._add("reinitialised", leaf, source, reason, np.array(self.leaves[leaf]))

    def _add(
        self, decision: Decision, leaf: str, source: _Source, reason: str, array: np.ndarray
    ) -> None:
        self.rows.append(
            ManifestRow(*source, leaf, array.shape, str(array.dtype), decision, reason)
        )
        self.arrays[leaf] = self.place(leaf, array)
