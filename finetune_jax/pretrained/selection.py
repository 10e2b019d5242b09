"""Which tensors of a file are the model's, by the choice of the user and the names of the file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.limits import is_optimizer
from finetune_jax.pretrained.formats.roles import ROLES
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.naming import Naming, find_naming, listed
from finetune_jax.pretrained.prefixes import Belongs, starts

_COUNTERS = re.compile(
    r"(.*[./])?(step|steps|global_step|epoch|iteration|count|rng|rng_key|prng_key|dropout_rng)"
)

IGNORED = "matches pretrained.ignore"
"""Reason in the manifest of a tensor that the user drops."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """A choice of tensors by the user; the keys of the config are ``pretrained.…``.

    Attributes:
      weights: ``pretrained.weights``, one of `roles.ROLES`; empty for the default of the file.
      prefix: ``pretrained.prefix``, the text before the names of the model's tensors; empty to take
        off what is before the names of all known tensors.
      ignore: ``pretrained.ignore``, a regular expression for whole names of tensors to drop, as in
        the file or without the prefix.
      names: names in the file of tensors to drop, beside those that match `ignore`.

    Raises:
      UserError: an unknown role, or no regular expression.
    """

    weights: str = ""
    prefix: str = ""
    ignore: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and self.weights not in ROLES:
            raise UserError(
                f"pretrained.weights: unknown weights {self.weights!r}."
                f"{nearest(self.weights, ROLES)}"
            )
        try:
            re.compile(self.ignore)
        except re.error as error:
            raise UserError(
                f"pretrained.ignore: {self.ignore!r} is no regular expression: {error}"
            ) from None


def model_names(weights: Weights) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the tensors of models, names of an optimizer's tensors and of counters)."""
    names = weights.names()
    slots = {n: None for n in names if is_optimizer(n) or _counts(weights, n)}
    return tuple(n for n in names if n not in slots), tuple(slots)


def _counts(weights: Weights, name: str) -> bool:
    """Whether a tensor is the step of a training loop, or the key of its random numbers."""
    shape, dtype = weights.spec(name)
    few = dtype.kind in "iu" and math.prod(shape) <= 4
    return few and _COUNTERS.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The tensors of a file that are the model's.

    Attributes:
      naming: the prefix of their names.
      ignored: names of the tensors that the user drops.
      left_out: ``{name: reason}`` of all tensors that are not the model's, `ignored` included; a
        load adds names.
      slots: names of the tensors of an optimizer, and of counters.
    """

    naming: Naming
    ignored: frozenset[str]
    left_out: dict[str, str]
    slots: tuple[str, ...]


# LoRA of peft, with and without the base.
_ADAPTER = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|base_layer)(\.|$)")
_FLAX_TRANSFORMERS = re.compile(
    r"(params/)?(bert|roberta|vit|resnet)/(embeddings|embedder|encoder)/"
)


def choose_tensors(
    weights: Weights, name_maps: Sequence[NameMap], belongs: Belongs, selection: Selection
) -> Chosen:
    """Finds the tensors of the model among those of a file; arguments and errors as `find_naming`.

    Raises:
      UserError: also if no name matches ``pretrained.ignore``.
    """
    names, slots = model_names(weights)
    _refuse_others(weights, names)
    pattern = re.compile(selection.ignore)

    def is_ignored(*spellings: str) -> bool:
        matches = bool(selection.ignore) and any(map(pattern.fullmatch, spellings))
        return matches or spellings[0] in selection.names

    kept = [name for name in names if not is_ignored(name)]
    naming = find_naming(weights, kept, name_maps, belongs, selection.weights, selection.prefix)
    ignored = {name: None for name in names if is_ignored(name, naming.short(name))}
    if selection.ignore and not ignored:
        raise UserError(
            f"{weights.path}: pretrained.ignore={selection.ignore!r} matches no name; it is "
            f"compared with whole names, such as {listed(names)}"
        )
    left_out = {name: reason for name in names if (reason := naming.outside(name))}
    left_out |= {name: IGNORED for name in ignored}
    return Chosen(naming, frozenset(ignored), left_out, slots)


def _refuse_others(weights: Weights, names: Iterable[str]) -> None:
    """Raises UserError for tensors that are no weights of a model that is read here."""
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise UserError(
            f"{weights.path}: {len(adapters)} tensors are an adapter of peft, such as "
            f"{adapters[0]!r}; merge the adapter into its base there, with merge_and_unload() and "
            f"save_pretrained(FOLDER), and load FOLDER"
        )
    flax = [name for name in names if _FLAX_TRANSFORMERS.match(name)]
    if flax:
        raise UserError(
            f"{weights.path}: names of transformers' Flax models or TensorFlow models, such as "
            f"{flax[0]!r}, are not known here; load model.safetensors or pytorch_model.bin "
            f"of the same model"
        )


def close_name(name: str, valid: Iterable[str]) -> str:
    """The hint of `errors.nearest`, if a valid name is close; '' if none is."""
    hint = nearest(name, valid)
    return hint if hint.startswith(" Did you") else ""


def _layer(name: str, others: Sequence[str]) -> str:
    """The closest numbered module around a tensor that holds others, too; '' for none."""
    module = name.rpartition(".")[0]
    while module := module.rpartition(".")[0]:
        if re.search(r"\d", module) and any(n.startswith(f"{module}.") for n in others):
            return module
    return ""


def ignoring(unknown: Sequence[str], others: Iterable[str], lacking: Iterable[str] = ()) -> str:
    """Text that says how to drop tensors that no leaf of the model lacks.

    Args:
      unknown: names of these tensors.
      others: names of the other tensors of the file.
      lacking: stages that lack tensors, and may be drawn anew.
    """
    but = f" outside of {', '.join(sorted(lacking))}" if lacking else ""
    others, patterns = tuple(others), []
    for name in unknown:
        roots = (name[:end] for end in starts(name)[1:])
        alone = (root for root in roots if not any(n.startswith(root) for n in others))
        root = next(alone, "")
        patterns.append(f"{re.escape(root)}.*" if root else re.escape(name))
    pattern = "|".join(dict.fromkeys(patterns))
    some = f"these {len(unknown)} tensors" if len(unknown) > 1 else "this tensor"
    inside = sorted({place for name in unknown if (place := _layer(name, others))})
    if inside:
        return (
            f"Tensors of unknown name lie in layers that the model has, such as "
            f"{inside[0]!r}: the network of the file computes more there than this model, whose "
            f"features would be others. If that is wanted, drop them: "
            f"--config.pretrained.ignore='{pattern:.500}'"
        )
    return (
        f"No leaf of the model{but} lacks {some} of unknown name. If that is right, drop what is "
        f"not needed: --config.pretrained.ignore='{pattern:.500}'"
    )
