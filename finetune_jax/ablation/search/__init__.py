"""Searches over hyper-parameters, by the name that a study gives."""

from __future__ import annotations

from finetune_jax.ablation.search.base import Search
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

_NAMES = ("grid", "halving", "optuna")


def parse_search(text: str) -> Search:
    """The search that a text such as ``halving(factor=3, rungs=3)`` names.

    Raises:
      UserError: unknown name or argument, or a value out of range.
    """
    calls = parse(text)
    call = calls[0]
    if len(calls) != 1 or call.name not in _NAMES:
        raise UserError(f"search: unknown search {text!r}.{nearest(call.name, _NAMES)}")
    try:
        return _search_class(call.name)(*call.args, **dict(call.kwargs))
    except TypeError as error:
        raise UserError(f"search={text!r}: {error}") from None


def _search_class(name: str) -> type[Search]:
    if name == "grid":
        from finetune_jax.ablation.search.grid import Grid

        return Grid
    if name == "halving":
        from finetune_jax.ablation.search.halving import Halving

        return Halving
    from finetune_jax.ablation.search.optuna import OptunaSearch

    return OptunaSearch
