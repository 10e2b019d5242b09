"""Describes a weight file: its tensors, and the model families, name maps and models that fit."""

from __future__ import annotations

import dataclasses
import math

import jax

from finetune_jax import tree
from finetune_jax.models import MODELS, StagedModel, build
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.layout import LayoutError
from finetune_jax.pretrained.maps import all_maps
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.stacked import unstack
from finetune_jax.pretrained.surgery import KINDS, misfit
from finetune_jax.tables import count, size, table

# Number of name maps that are shown when no name map fits.
_CLOSEST = 3


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of one name map for a file.

    Attributes:
      name_map: the name map.
      unknown: tensor names that the name map does not know.
      models: names of registered models, all of whose leaves get a tensor of the right shape. The
        head may differ, and position embeddings may be resized.
    """

    name_map: NameMap
    unknown: tuple[str, ...]
    models: tuple[str, ...]


def fits(weights: Weights) -> list[Fit]:
    """The name maps that know at least one name of the file, best first.

    Fitting models are listed for name maps that know every name.
    """
    found = []
    for name_map in all_maps():
        rows = unstack(weights, (name_map,))
        # The name maps of our own files know every name; only the models distinguish them.
        unknown = tuple(
            n for n in rows.names() if not name_map.targets(n) and not name_map.ignored(n)
        )
        if len(unknown) == len(rows.names()):
            continue
        models = () if unknown else tuple(_models(rows, name_map))
        if models or unknown or name_map.origin != "native":
            found.append(Fit(name_map, unknown, models))
    return sorted(found, key=lambda fit: (len(fit.unknown), not fit.models))


def _models(weights: Weights, name_map: NameMap) -> list[str]:
    targets = {t.leaf: (n, t) for n in weights.names() for t in name_map.targets(n)}
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

        opening = _leaves(model, entry.image_size, model.stages[1])
        if not all(reads(leaf, wanted) for leaf, wanted in opening.items()):
            continue
        every = _leaves(model, entry.image_size)
        without = {"head", *model.absent_stages}
        surplus = [t for t in targets if t not in every and t.split("/")[1] not in without]
        if not surplus and all(reads(leaf, wanted) for leaf, wanted in every.items()):
            fitting.append(name)
    return fitting


def _leaves(
    model: StagedModel, size: int, stop: str | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape structs of the leaves of a model, or of its stages before `stop`, by path."""
    return tree.flatten(
        jax.eval_shape(lambda k: model.init(k, model.example(size), stop=stop), jax.random.key(0))
    )


def report(weights: Weights, *, limit: int = 0) -> str:
    """The text that the command ``inspect`` prints: tensors, other entries, and what fits.

    Args:
      weights: an open file.
      limit: number of tensors to list; 0 lists all.
    """
    specs = [(name, *weights.spec(name)) for name in weights.names()]
    rows = [[name, str(dtype), str(list(shape))] for name, shape, dtype in specs]
    shown = rows if not limit else rows[:limit]
    lines = [table(["tensor", "dtype", "shape"], shown, left=3)]
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} more (--tensors=0 lists all)")
    scalars = sum(math.prod(shape) for _, shape, _ in specs)
    total = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in specs)
    lines.append(f"\n{len(rows)} tensors, {count(scalars)} values, {size(total)}")
    if weights.other_entries:
        lines.append(f"other entries, not read: {', '.join(weights.other_entries)}")
    for key, value in weights.metadata.items():
        lines.append(f"metadata {key}: {value if len(value) < 200 else value[:200] + '…'}")
    found = fits(weights)
    if not found:
        lines.append("\nno model family knows any of these names")
    complete = [fit for fit in found if not fit.unknown]
    for fit in complete or found[:_CLOSEST]:
        name = f"{fit.name_map.family}, names of {fit.name_map.origin}"
        if fit.unknown:
            sample = ", ".join(map(repr, fit.unknown[:3])) + (", …" if len(fit.unknown) > 3 else "")
            lines.append(f"does not fit: {name}: {len(fit.unknown)} unknown names: {sample}")
        elif fit.models:
            lines.append(f"fits: {name}: model.name={' or '.join(fit.models)}")
        else:
            lines.append(f"fits by name alone: {name}: no registered model has these shapes")
    return "\n".join(lines)
