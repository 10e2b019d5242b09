"""The named schemes and programs, and how a term of a scheme calls them.

A scheme is a function of the model's `ModelSpec` and of the scheme's own arguments that returns a
`Selection`: the leaves that train, their rates, and the deltas to add. Groups, decay and BatchNorm
modes belong to the plan. A program returns the sums of several phases instead. A function of
another package, named ``package.module:function``, may be either.
"""

from __future__ import annotations

import inspect
import reprlib
import types
from collections.abc import Callable
from typing import Any

from finetune_jax.deltas import Delta
from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, Sum
from finetune_jax.schemes import additions, masks, programs, rates
from finetune_jax.schemes.model_spec import ModelSpec, Selection

SCHEMES: dict[str, Callable[..., Selection]] = {
    term.__name__: term for term in (*masks.TERMS, *rates.TERMS, *additions.TERMS)
}
PROGRAMS: dict[str, Callable[..., list[Sum]]] = {f.__name__: f for f in programs.PROGRAMS}

RATES = ("lr", "decay", "schedule", "warmup")
"""Keyword arguments that every scheme takes: they set the rates of the term's group."""


def split_rates(term: Call) -> tuple[Call, dict[str, Any]]:
    """Returns (the term without the keyword arguments in `RATES`, these arguments)."""
    kwargs = tuple((k, v) for k, v in term.kwargs if k not in RATES)
    return Call(term.name, term.args, kwargs), {k: v for k, v in term.kwargs if k in RATES}


def select(term: Call, spec: ModelSpec) -> Selection:
    """What a term selects; the rates of the term's group, such as ``lr=0.1``, are left out.

    Raises:
      UserError: an unknown scheme, wrong arguments, or a function of another package that returns
        something that the model does not have.
    """
    if term.name in SCHEMES:
        return _call(SCHEMES[term.name], term, spec)
    if is_door(term.name):
        return _checked(_call_door(term, spec), term, spec)
    if term.name in PROGRAMS:
        raise UserError(f"scheme: {term.name!r} stands for several phases; expected a single phase")
    names = (*SCHEMES, *PROGRAMS, "phase")
    raise UserError(f"scheme: unknown scheme {term.name!r}.{nearest(term.name, names)}")


def expand(term: Call, spec: ModelSpec) -> list[Sum] | None:
    """The sums of the phases that a program stands for; None if the term is no program.

    Raises:
      UserError: wrong arguments, or a function of another package that returns something else.
    """
    if term.name in PROGRAMS:
        return _call(PROGRAMS[term.name], term, spec, rates=False)
    if not is_door(term.name):
        return None
    found = _call_door(term, spec)
    if isinstance(found, Selection):
        return None
    if split_rates(term)[1]:
        raise UserError(
            f"scheme {term}: {term.name!r} stands for several phases and takes no "
            f"{', '.join(RATES)}"
        )
    return found


def _call_door(term: Call, spec: ModelSpec) -> Any:
    found = _call(open_door(term.name, "scheme", types.FunctionType), term, spec)
    sums = isinstance(found, list) and all(
        isinstance(terms, tuple) and terms and all(isinstance(t, Call) for t in terms)
        for terms in found
    )
    if isinstance(found, Selection) or (sums and found):
        return found
    raise UserError(
        f"scheme {term}: expected a finetune_jax.schemes.Selection, or a list of "
        f"finetune_jax.grammar.parse(...) with one entry per phase; the function returned "
        f"{reprlib.repr(found)}"
    )


def _checked(found: Any, term: Call, spec: ModelSpec) -> Selection:
    """What a function of another package selects, if the model has it."""
    if not isinstance(found, Selection):
        raise UserError(f"scheme: {term.name!r} stands for several phases; expected a single phase")
    for path in (*found.leaves, *(found.rates or ())):
        if path not in spec.leaves:
            raise UserError(
                f"scheme {term}: the model has no leaf {path!r}.{nearest(path, spec.paths)}"
            )
    for delta in found.deltas:
        if not isinstance(delta, Delta):
            raise UserError(f"scheme {term}: expected a finetune_jax.deltas.Delta, found {delta!r}")
    if found.rates is not None:
        missing = [path for path in spec.paths if path not in found.rates]
        if missing:
            raise UserError(
                f"scheme {term}: expected a rate for every leaf, none for {missing[0]!r}"
            )
        for path, rate in found.rates.items():
            if not 0 < rate < float("inf"):
                raise UserError(f"scheme {term}: expected rates > 0, found {rate!r} for {path!r}")
    return found


def _call(function: Callable[..., Any], term: Call, spec: ModelSpec, rates: bool = True) -> Any:
    """``function(spec, *args, **kwargs)``; with `rates`, the arguments in `RATES` are left out."""
    arguments = split_rates(term)[0] if rates else term
    signature = inspect.signature(function)
    try:
        signature.bind(spec, *arguments.args, **dict(arguments.kwargs))
    except TypeError as error:
        own = list(signature.parameters)[1:]
        names = [*own, *(rate for rate in (RATES if rates else ()) if rate not in own)]
        raise UserError(f"scheme {term}: {error}; {term.name} takes ({', '.join(names)})") from None
    try:
        return function(spec, *arguments.args, **dict(arguments.kwargs))
    except UserError as error:
        raise UserError(f"scheme {term}: {error}") from None
