"""Matches the tensors of a file with the leaves of a model, by name alone."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Sequence

from finetune_jax.errors import UserError, nearest
from finetune_jax.models import MODULE_OF_FAMILY
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.inspection import inspect
from finetune_jax.pretrained.maps import closest_map
from finetune_jax.pretrained.names import NameMap, Target
from finetune_jax.pretrained.prefixes import Belongs
from finetune_jax.pretrained.selection import Chosen

_FEWEST = 0.1  # share of a file's names that the name map of its family knows
_OTHERS = 5  # models that an error lists beside the closest


def choose_map(
    weights: Weights,
    names: Sequence[str],
    family: str,
    name_maps: Sequence[NameMap],
    chosen: Chosen,
    leaves: Collection[str],
    belongs: Belongs,
    model_name: str = "",
) -> NameMap:
    """The name map that knows most of the names.

    Args:
      weights: the open file.
      names: its names.
      family: the model family.
      name_maps: name maps to choose from.
      chosen: which of the names are the model's.
      leaves: ``collection/leaf path`` of the model.
      belongs: see `Belongs`.
      model_name: ``model.name``, for the message.

    Raises:
      UserError: hardly any name is that of a leaf of the model.
    """
    naming = chosen.naming
    short = [
        naming.short(name)
        for name in names
        if name not in chosen.left_out and (not naming.given or name.startswith(naming.prefix))
    ]
    best, unmatched = closest_map(name_maps, short, leaves)
    fitting = sum(belongs(best, name) for name in short)
    # A few names that are known by chance would give a list of hundreds of problems.
    if len(unmatched) < len(short) and fitting >= _FEWEST * len(short):
        return best
    origins = ", ".join(m.origin for m in name_maps)
    shown = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
    few = f"only {fitting} of {len(short)} tensors have" if fitting else "no tensor has"
    text = (
        f"{weights.path}: {few} a name of the family {family!r} (known origins: {origins}): "
        f"{shown}."
    )
    if family not in MODULE_OF_FAMILY:
        text += f" The family is none of this package.{nearest(family, MODULE_OF_FAMILY)}"
    if fitting and naming.prefix and not naming.given:
        text += f" pretrained.prefix={naming.prefix!r} drops tensors without this prefix."
    raise UserError(f"{text} {other_models(weights, model_name) or look_at(weights)}")


def look_at(weights: Weights) -> str:
    """The advice to inspect a file."""
    return f"To see which models fit: python -m finetune_jax.pretrained inspect {weights.path}"


def other_models(weights: Weights, name: str) -> str:
    """A sentence with the models that a file fits, and the flag; '' if it fits `name` or none.

    Args:
      weights: the file; it is opened again, because its tensors may have been regrouped.
      name: ``model.name``, the model that the file does not fit; '' where it is not known.
    """
    if not name:
        return ""
    try:
        with open_weights(weights.path, weights.chosen) as file:
            found = inspect(file).fits
    except UserError:
        return ""
    models = [model for fit in found if not fit.unknown for model in fit.models]
    models = models or [fit.sizes for fit in found if fit.sizes]
    if not models or name in models:
        return ""
    best = (difflib.get_close_matches(name, models, n=1, cutoff=0) or models)[0]
    others = [model for model in models if model != best]
    also = f", and also {', '.join(others[:_OTHERS])}" if others else ""
    also += f" and {len(others) - _OTHERS} more models" if len(others) > _OTHERS else ""
    return f"The file fits {best}{also}: --config.model.name={shlex.quote(best)}"


def match(
    names: Sequence[str], name_map: NameMap, chosen: Chosen, leaves: Collection[str]
) -> tuple[dict[str, tuple[Target, ...]], list[str]]:
    """Matches every name; returns (the leaves that each tensor fills, problems).

    With a prefix of the user, a tensor with the prefix precedes one without the prefix, and a
    tensor without the prefix that fills no leaf is added to ``chosen.left_out``.
    """
    naming = chosen.naming
    matches: dict[str, tuple[Target, ...]] = {}
    taken: dict[str, str] = {}
    problems = []
    outside = {n for n in names if naming.given and not n.startswith(naming.prefix)}
    for name in sorted(names, key=lambda n: n in outside):
        short = naming.short(name)
        known = name_map.ignored(short) is not None
        matches[name] = found = () if known else name_map.targets(short)
        if name in outside and name not in chosen.left_out and not known:
            fills = any(t.leaf in leaves and t.leaf not in taken for t in found)
            if not fills:
                reason = f"does not begin with pretrained.prefix={naming.prefix!r}"
                chosen.left_out[name] = reason
        if name in chosen.left_out:
            continue
        for target in found:
            if target.leaf in taken:
                problems.append(
                    f"tensors {taken[target.leaf]!r} and {name!r} both belong to {target.leaf}"
                )
            taken.setdefault(target.leaf, name)
    return matches, problems
