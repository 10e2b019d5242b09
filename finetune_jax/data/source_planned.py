"""Data that is not here, for plans: ``planned:EXAMPLES:tfds:NAME`` or ``planned:EXAMPLES:CLASSES``.

The splits ``train``, ``validation`` and ``test`` have EXAMPLES examples each. The classes and the
columns are those of the metadata that TFDS has without the data, or there are CLASSES classes (0:
the labels are not classes). No example can be read.
"""

from __future__ import annotations

from typing import NoReturn

from finetune_jax.data.source_tfds import metadata
from finetune_jax.data.sources import Options, Source
from finetune_jax.errors import UserError


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens the stand-in.

    Raises:
      UserError: the text is written otherwise, or TFDS does not know the data set.
    """
    examples, _, what = rest.partition(":")
    if not examples.isdecimal() or int(examples) < 1 or not what:
        raise UserError(
            f"data.source: expected planned:EXAMPLES:tfds:NAME or planned:EXAMPLES:CLASSES with at "
            f"least 1 example, found {name!r}"
        )
    splits = dict.fromkeys(("train", "validation", "test"), int(examples))
    if what.startswith("tfds:"):
        names, columns = metadata(what, options)
    elif what.isdecimal():
        names, columns = tuple(f"class {number}" for number in range(int(what))), ()
    else:
        raise UserError(f"data.source: expected a number of classes, found {what!r} in {name!r}")

    def read(split: str) -> NoReturn:
        raise UserError(f"data.source={name}: this data is planned only; {split!r} has no examples")

    return Source(name, names, splits, read, columns=columns)


def planned(source: str, classes: int, examples: int) -> str:
    """The stand-in for a source.

    Args:
      source: a value of ``data.source``.
      classes: value of ``task.num_classes``, for sources other than tfds.
      examples: number of examples of each split.
    """
    what = source if source.startswith("tfds:") else str(classes)
    return f"planned:{examples}:{what}"
