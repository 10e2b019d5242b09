"""Finds the state dicts in the unpickled content of a PyTorch file, and chooses one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import MAX_NAME_LENGTH
from finetune_jax.pretrained.formats.roles import RAW, role_of
from finetune_jax.pretrained.formats.torch_pickle import TensorRecord, shown

# Keys under which training scripts store the state dict. Other keys count only in a file without
# any of them, and without tensors at its top level.
_USUAL = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "params", "module"),
    *("network", "weights", "model_weights"),
)
# Tensors of training that are no weights: optimizers, schedules, losses, random numbers.
_TRAINING = re.compile(
    r"(.*_)?(opt|optim|optimizers?|opt_state|schedulers?|lr_schedulers|scaler|amp|rng|rng_state"
    r"|random_state|loss|losses|criterion|callbacks|loops|metrics?|queue|hyper_parameters)"
    r"(_.*)?|.*_(loss|optimizer|scheduler)"
)
_MAX_NESTING = 3


class StateDict(NamedTuple):
    """The state dict that was chosen.

    Attributes:
      records: tensors by name.
      other_entries: names of the other entries of the file.
      sets, chosen: see `Weights`.
    """

    records: dict[str, TensorRecord]
    other_entries: tuple[str, ...]
    sets: dict[str, str]
    chosen: str


def choose_state_dict(content: Any, role: str = "") -> StateDict:
    """Chooses a state dict of a file's content.

    Args:
      content: the unpickled content of the file.
      role: role of the state dict, in a file with several (`roles.ROLES`). Without a role, or in a
        file without a state dict of this role, the choice is that of `roles.role_of`.

    Raises:
      UserError: the file has no state dict, or several of the same role.
    """
    if isinstance(content, list | tuple) and any(isinstance(v, Mapping) for v in content):
        content = {str(i): value for i, value in enumerate(content)}  # (state dict, epoch)
    if not isinstance(content, Mapping):
        raise UserError(f"expected a dict of tensors, found a {type(content).__name__}")
    places = _places(content)
    if not places and {"state", "param_groups"} <= content.keys():
        raise UserError(
            "it is the state of an optimizer, without weights of a model; give the file of the "
            "model that was saved beside it, such as model.safetensors or pytorch_model.bin"
        )
    if not places and not _holds_tensors(content):
        raise UserError(
            f"no tensors at the top level nor in a dict under a key such as "
            f"{', '.join(_USUAL[:4])}; "
            f"found {', '.join(shown(key) for key in list(content)[:20]) or 'nothing'}."
        )
    # Weights at the top level beside their average. Names of weights have dots; other tensors, such
    # as the state of a random generator, have none.
    dotted = any(isinstance(v, TensorRecord) and "." in str(k) for k, v in content.items())
    if dotted and places and all(role_of(place)[0] != RAW for place in places):
        places.append(())
    by_role: dict[str, list[tuple[str, ...]]] = {}
    ranks: dict[str, int] = {}
    for place in places or [()]:
        its, rank = role_of(place)
        by_role.setdefault(its, []).append(place)
        ranks[its] = min(rank, ranks.get(its, rank))
    chosen = role if role in by_role else min(by_role, key=ranks.__getitem__)
    several = by_role[chosen]
    usual = all(key in _USUAL for place in several for key in place)
    if len(several) > 1 and (usual or chosen != RAW):
        keys = " and ".join(repr(_text(place)) for place in several)
        raise UserError(f"more than one state dict: under {keys}; save only one of them")
    # Parts of one model under unusual keys, such as a backbone and a head: their keys are prefixes.
    records: dict[str, TensorRecord] = {}
    skipped = list(_beside(content, several, ()))
    for place in several:
        prefix = ".".join((*place, "")) if len(several) > 1 else ""
        for key, value in _at(content, place).items():
            if not isinstance(value, TensorRecord):
                skipped.append(_entry(place, key))
            elif isinstance(key, str) and len(key) <= MAX_NAME_LENGTH:
                records[prefix + key] = value
            else:
                raise UserError(
                    f"expected a tensor's name of at most {MAX_NAME_LENGTH} characters, found "
                    f"{shown(key)}"
                )
    sets = {r: " and ".join(_text(w) or "no key" for w in found) for r, found in by_role.items()}
    if set(sets) == {RAW}:
        return StateDict(records, tuple(skipped), {}, "")
    return StateDict(records, tuple(skipped), sets, chosen)


def _places(content: Mapping[Any, Any]) -> list[tuple[str, ...]]:
    """The keys of the dicts of tensors below `content` that are sets of weights."""
    found = list(_all_places(content, ()))

    def strangeness(place: tuple[str, ...]) -> int:
        usual = [key in _USUAL or role_of([key])[0] != RAW for key in place]
        return 0 if all(usual) else 1 if any(usual) else 2

    raw = [place for place in found if role_of(place)[0] == RAW]
    others = [place for place in found if role_of(place)[0] != RAW]
    usual = [place for place in raw if strangeness(place) == 0]
    averages = {role_of(place)[0] for place in others} == {"ema"}
    # The state dicts of a teacher and of a student are complete. The entry beside an average holds
    # the weights that were averaged.
    if not usual and others and not averages:
        return others
    least = min(map(strangeness, raw), default=0)
    return [place for place in raw if strangeness(place) == least] + others


def _all_places(content: Mapping[Any, Any], place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        usual = key in _USUAL or role_of([key])[0] != RAW
        if not usual and (_TRAINING.fullmatch(key.lower()) or _holds_tensors(content)):
            continue
        if _holds_tensors(value):
            yield (*place, key)
        elif len(place) < _MAX_NESTING:
            yield from _all_places(value, (*place, key))


def _at(content: Mapping[Any, Any], place: tuple[str, ...]) -> Mapping[Any, Any]:
    for key in place:
        content = content[key]
    return content


def _beside(
    content: Mapping[Any, Any], chosen: list[tuple[str, ...]], place: tuple[str, ...]
) -> Iterator[str]:
    """Texts of all entries on the way to the chosen dicts that do not lead to one of them."""
    if place in chosen:
        return
    leading = {way[len(place)] for way in chosen if way[: len(place)] == place}
    yield from (_entry(place, key) for key in content if key not in leading)
    for key in content:
        if key in leading:
            yield from _beside(content[key], chosen, (*place, key))


def _entry(place: tuple[str, ...], key: Any) -> str:
    """Text of a key in messages: ``'epoch'``, ``model['version']``."""
    return f"{_text(place)}[{shown(key)}]" if place else shown(key)


def _text(place: tuple[str, ...]) -> str:
    return "".join([*place[:1], *(f"[{shown(key)}]" for key in place[1:])])


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, TensorRecord) for v in value.values())
