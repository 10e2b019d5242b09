"""Options in the name of a model: ``bert(width=128, depth=2, heads=2, pooling='mean')``.

The options are fields of the class of the model. An entry without sizes, such as ``bert`` or
``vit``, needs them; an entry with sizes, such as ``bert_base_uncased``, may take them too. The
canonical name has the options in alphabetical order.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import call, parse
from finetune_jax.models.registry import Entry

# Largest value of an option that counts something, and largest number of blocks.
_MOST, _MOST_BLOCKS = 10**7, 1000
# Options whose value may be 0.
_MAY_BE_ZERO = {"registers", "inner", "padding", "layer_scale"}


def split(name: str) -> tuple[str, dict[str, Any]]:
    """The name of the entry and the options of ``NAME(option=value)``.

    Raises:
      UserError: the text is no name and no single call whose arguments are all named.
    """
    terms = parse(name)
    if len(terms) != 1 or terms[0].args:
        raise UserError(
            f"model.name: expected a name, or a name with options such as "
            f"bert(width=128, depth=2, heads=2), found {name!r}"
        )
    return terms[0].name, dict(terms[0].kwargs)


def joined(name: str, options: Mapping[str, Any]) -> str:
    """The canonical name of an entry with options."""
    return str(call(name, **options))


def with_options(name: str, entry: Entry, options: Mapping[str, Any]) -> Entry:
    """The entry of a model with the options of a name.

    Args:
      name: name of the entry, for messages.
      entry: entry that the options change.
      options: values by name of the option.

    Raises:
      UserError: an unknown or missing option, a value of another type or out of range, or values
        that exclude each other.
    """
    for option in options:
        if option not in entry.options:
            near = nearest(option, entry.options) if entry.options else " It has no options."
            raise UserError(f"model.name: {name} has no option {option!r}.{near}")
    if missing := [option for option in entry.required if option not in options]:
        raise UserError(
            f"model.name: {name} has no sizes of its own: expected the "
            f"option{'s' * (len(missing) > 1)} {', '.join(missing)}. Write "
            f"{name}({', '.join(f'{m}=…' for m in missing)}), or let pretrained.path name a folder "
            f"with config.json"
        )
    assert isinstance(entry.build, functools.partial)
    annotations = {f.name: str(f.type) for f in dataclasses.fields(entry.build.func)}  # type: ignore[arg-type]  # a class
    read = {
        o: _value(f"model.name: {name}({o}=…)", o, annotations[o], v) for o, v in options.items()
    }
    changed = dataclasses.replace(entry, build=functools.partial(entry.build, **read))
    model = changed.build(num_classes=1)
    try:
        model.check()
    except UserError as error:
        raise UserError(f"model.name: {name}: {error}") from None
    return changed.fitted(changed, model) if changed.fitted else changed


def _value(where: str, option: str, annotation: str, value: Any) -> Any:
    """A value of the type of a field, within its range."""
    if annotation.startswith("tuple"):
        numbers = tuple(value) if isinstance(value, tuple | list) else ()
        most = _MOST_BLOCKS if option == "depths" else _MOST
        if not numbers or not all(_is_integer(n) and n > 0 for n in numbers) or sum(numbers) > most:
            raise UserError(f"{where}: expected positive integers such as (2, 2), found {value!r}")
        return numbers
    if annotation == "str" or annotation.startswith("bool"):
        kind = str if annotation == "str" else bool
        if not isinstance(value, kind):
            raise UserError(f"{where}: expected a {kind.__name__}, found {value!r}")
        return value
    if not (_is_integer(value) or (annotation == "float" and isinstance(value, float))):
        kind_of_number = "a whole number" if annotation == "int" else "a number"
        raise UserError(f"{where}: expected {kind_of_number}, found {value!r}")
    least = 0 if option in _MAY_BE_ZERO else (1 if annotation == "int" else 1e-30)
    most = _MOST_BLOCKS if option == "depth" else _MOST
    if not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"{where}: expected a value from {least:g} to {most:,}, found {value!r}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
