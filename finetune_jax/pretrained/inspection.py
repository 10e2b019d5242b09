"""Describes a weight file: its tensors, and the model families, name maps and models that fit."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence

import jax

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import MODELS, StagedModel, build
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.layout import LayoutError
from finetune_jax.pretrained.manifest import shorten
from finetune_jax.pretrained.maps import all_maps
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.naming import Naming
from finetune_jax.pretrained.prefixes import best_prefix
from finetune_jax.pretrained.selection import Chosen, Selection, choose_tensors, model_names
from finetune_jax.pretrained.sizes.shapes import sizes_by_shape
from finetune_jax.pretrained.stacked import unstack
from finetune_jax.pretrained.surgery import KINDS, misfit
from finetune_jax.tables import count, size, table

_CLOSEST = 3  # name maps that are shown when no name map fits
# Names of our own files: a collection, a stage and a leaf.
_NATIVE = re.compile(
    r"(params|batch_stats)/(stem|head|norm|top|pooler|map_pool|[a-z_]+\d+|[a-z]+\d+_[a-z]+\d+)/.+"
)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of one name map for a file.

    Attributes:
      name_map: the name map.
      known: names of tensors that fill a leaf of the family.
      unknown: names of tensors that the name map does not know.
      models: names of registered models, all of whose leaves get a tensor of the right shape. The
        head may differ, and position embeddings may be resized.
      sizes: if no registered model fits, the name of a model with the sizes that the shapes show;
        empty where shapes do not show them.
    """

    name_map: NameMap
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    models: tuple[str, ...]
    sizes: str = ""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is known about a file.

    Attributes:
      chosen: the tensors that are looked at, and the prefix of their names.
      problem: why a load would not choose these tensors by itself; empty if it would.
      fits: the name maps that know at least one name, best first.
    """

    chosen: Chosen
    problem: str
    fits: tuple[Fit, ...]


def inspect(weights: Weights, selection: Selection = Selection()) -> Inspection:  # noqa: B008
    """Finds the families and models that fit a file; `selection` as in `load`.

    The name maps are ranked by the tensors that fill a leaf. Names that a name map ignores, such
    as torch's counters of batches, are names of many families.

    Raises:
      UserError: the file has no such tensors as `selection` says.
    """
    name_maps = all_maps()

    def belongs(name_map: NameMap, name: str) -> bool:
        if name_map.origin == "native":
            return _NATIVE.fullmatch(name) is not None
        return bool(name_map.targets(name) or name_map.targets(f"{name}[0]"))

    problem = ""
    try:
        chosen = choose_tensors(weights, name_maps, belongs, selection)
    except UserError as error:
        if selection != Selection():
            raise
        problem = str(error).removeprefix(f"{weights.path}: ")
        names, slots = model_names(weights)
        naming = Naming(best_prefix(names, name_maps, belongs), given=True)
        chosen = Chosen(naming, frozenset(), {}, slots)
    naming = chosen.naming
    found = []
    for name_map in name_maps:
        left_out = {*chosen.left_out, *chosen.slots}
        rows = unstack(weights, (name_map,), naming.short, left_out)
        short = {n: naming.short(n) for n in rows.names() if n not in left_out}
        known = tuple(n for n, name in short.items() if belongs(name_map, name))
        unknown = tuple(
            n
            for n, name in short.items()
            if not name_map.targets(name)
            and name_map.ignored(name) is None
            # A load drops what has no prefix of the user and no known name.
            and (problem or not naming.given or n.startswith(naming.prefix))
        )
        if known:
            found.append((rows, Fit(name_map, known, unknown, ())))
    found.sort(key=lambda pair: (bool(pair[1].unknown), -len(pair[1].known), len(pair[1].unknown)))
    fits = []
    for place, (rows, fit) in enumerate(found):
        models: tuple[str, ...] = ()
        # Models are looked for where only some of the names are unknown, such as a second head.
        if not fit.unknown or (place < _CLOSEST and len(fit.known) > len(fit.unknown)):
            models = tuple(_models(rows, fit, naming.short))
        sizes = "" if models or fit.unknown else sizes_by_shape(rows, fit.name_map, naming.short)
        if models or sizes or fit.unknown or fit.name_map.origin != "native":
            fits.append(dataclasses.replace(fit, models=models, sizes=sizes))
    return Inspection(
        chosen, problem, tuple(sorted(fits, key=lambda f: bool(f.unknown or not f.models)))
    )


def fits(weights: Weights) -> list[Fit]:
    """The name maps that know at least one name of the file, best first; see `inspect`."""
    return list(inspect(weights).fits)


def _models(weights: Weights, fit: Fit, short: Callable[[str], str]) -> list[str]:
    name_map = fit.name_map
    targets = {t.leaf: (n, t) for n in fit.known for t in name_map.targets(short(n))}
    stages = {leaf.split("/")[1] for leaf in targets} - {"head"}
    fitting = []
    for name, entry in MODELS.items():
        if entry.family != name_map.family:
            continue
        model = build(name, max(entry.classes, 1))
        # Tracing a whole model takes a second. The names of its stages are known without tracing,
        # and its first stage is enough to rule out most models.
        repeated = {stage for stage in model.stages if stage[-1].isdigit()}
        known = {*model.stages, *model.absent_stages}
        if not repeated <= stages <= known:
            continue

        def reads(leaf: str, wanted: jax.ShapeDtypeStruct, model: StagedModel = model) -> bool:
            if leaf.split("/")[1] == "head":
                return True
            if leaf not in targets:
                return name_map.constant(leaf) is not None
            source, target = targets[leaf]
            try:
                found = target.shape(weights.spec(source)[0], model.sizes)
            except LayoutError:
                return False
            if found == tuple(wanted.shape):
                return True
            # A model may have another image size, but no other patch size.
            resizable = model.resizable.get(leaf.removeprefix("params/"))
            return (
                resizable is not None
                and resizable.kind == "position"
                and not misfit(found, tuple(wanted.shape), resizable, dict.fromkeys(KINDS, True))
            )

        opening = _leaves(name, model.stages[1])
        if not all(reads(leaf, wanted) for leaf, wanted in opening.items()):
            continue
        every = _leaves(name)
        without = {"head", *model.absent_stages}
        surplus = [t for t in targets if t not in every and t.split("/")[1] not in without]
        if not surplus and all(reads(leaf, wanted) for leaf, wanted in every.items()):
            fitting.append(name)
    return fitting


@functools.lru_cache(maxsize=256)  # several name maps of a family may fit a file
def _leaves(name: str, stop: str | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape structs of the leaves of a model, or of its stages before `stop`, by path."""
    entry = MODELS[name]
    model, size = build(name, max(entry.classes, 1)), entry.image_size
    return tree.flatten(
        jax.eval_shape(lambda k: model.init(k, model.example(size), stop=stop), jax.random.key(0))
    )


def report(weights: Weights, *, limit: int = 0, selection: Selection = Selection()) -> str:  # noqa: B008
    """The text that the command ``inspect`` prints: tensors, other entries, and what fits.

    Args:
      weights: an open file.
      limit: number of tensors to list; 0 lists all.
      selection: as in `inspect`, whose errors are raised.
    """
    names, slots = model_names(weights)
    specs = [(name, *weights.spec(name)) for name in names]
    rows = [[name, str(dtype), str(list(shape))] for name, shape, dtype in specs]
    shown = rows if not limit else rows[:limit]
    lines = [table(["tensor", "dtype", "shape"], shown, left=3)]
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} more (--tensors=0 lists all)")
    scalars = sum(math.prod(shape) for _, shape, _ in specs)
    total = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in specs)
    lines.append(f"\n{len(rows)} tensors, {count(scalars)} values, {size(total)}")
    if entries := (*weights.other_entries, *slots):
        lines.append(f"other entries, not read: {shorten(entries)}")
    for key, value in weights.metadata.items():
        lines.append(f"metadata {key}: {value if len(value) < 200 else value[:200] + '…'}")
    return "\n".join([*lines, "", *_findings(inspect(weights, selection), names)])


def _findings(found: Inspection, names: Sequence[str]) -> list[str]:
    """Lines about the tensors that are looked at, and the families and models that fit."""
    naming, best = found.chosen.naming, found.fits[0] if found.fits else None
    lines = [found.problem] if found.problem else []
    lines += [line for line in naming.said if "is taken off" not in line]
    if naming.prefix and best:
        left = [name for name in names if name not in found.chosen.left_out]
        behind = sum(name.startswith(naming.prefix) for name in left)
        models = " or ".join(best.models) or best.name_map.family
        some = f"all {behind}" if behind == len(left) else f"{behind} of {len(left)}"
        lines.append(f"{some} names begin with {naming.prefix!r}; without it: {models}")
    if best is None:
        return [*lines, "no model family knows any of these names"]
    complete = [fit for fit in found.fits if not fit.unknown]
    close = [fit for fit in found.fits[:_CLOSEST] if 2 * len(fit.known) > len(best.known)]
    for fit in complete or close:
        name = f"{fit.name_map.family}, names of {fit.name_map.origin}"
        models = " or ".join(fit.models)
        if fit.unknown:
            sample = ", ".join(map(repr, fit.unknown[:3])) + (", …" if len(fit.unknown) > 3 else "")
            known = f"{len(fit.known)} names are those of "
            known += f"model.name={models} (pretrained.ignore drops names)" if models else "leaves"
            lines.append(
                f"does not fit: {name}: {len(fit.unknown)} unknown names: {sample}; {known}"
            )
        elif models:
            lines.append(f"fits: {name}: model.name={models}")
        else:
            sizes = f"; model.name='{fit.sizes}' has their sizes" if fit.sizes else ""
            lines.append(f"fits by name alone: {name}: no registered model has these shapes{sizes}")
    return lines
