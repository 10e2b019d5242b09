"""Data sources: a registry by prefix, with one file ``source_*.py`` per source.

An opened source knows its classes and the sizes of its splits before any image is read;
`Source.read` gives random access to examples.

A source of another package is named by its import path, ``data.source="my_package:open_rows"``, or
with an argument, ``data.source="my_package:open_rows:/data/rows"``. The object is an `OpenSource`,
as the ``open_`` of each of our own sources: a function of (the whole text of ``data.source``, the
argument or "", `Options`) to a `Source`. Worker processes (``data.workers``) need examples that can
be pickled.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from finetune_jax.data.skip import without_bad
from finetune_jax.data.splits import resolve_split
from finetune_jax.doors import DOOR, open_door
from finetune_jax.errors import UserError, nearest

# Prefix to the module whose `open_` opens it, and how its name is written.
SOURCES = {
    "digits": ("source_digits", "digits[:attributes|:masks|:pairs]"),
    "tfds": ("source_tfds", "tfds:NAME[/CONFIG][:VERSION]"),
    "folder": ("source_folder", "folder:PATH"),
    "csv": ("source_csv", "csv:PATH"),
    "hf": ("source_hf", "hf:OWNER/NAME[:CONFIG] or hf:PATH"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a source is read; each is the key of ``config.data`` of the same name, said there.

    A source leaves out what it has no use for.
    """

    data_dir: str = ""
    prepare: bool = False
    image_column: str = "image"
    label_column: str = "label"
    mask_column: str = "mask"
    label_kind: str = ""
    label_sep: str = "|"
    label_until: str = ""
    split_seed: int = 0
    on_bad_image: str = "error"
    sep: str = ""
    header: tuple[str, ...] = ()
    encoding: str = "utf-8"
    quoting: bool = True
    extra: str = "error"


class Examples(Protocol):
    """Random access to examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example by column: ``image`` uint8[height, width, 3], ``label`` int, for instance."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
      name: as written in ``config.data.source``.
      class_names: in label order; empty where the targets are no classes.
      splits: number of examples per split.
      reader: split text, in TFDS syntax, to examples.
      origin: where the data lies and which version it is; two datasets of one name differ in it.
      columns: of an example; empty where a source does not say.
      on_bad_image: ``error``, or ``skip``: `read` decodes all images of the split once and leaves
        out, by name, those that fail.
      pairs: whether an example has a second image, ``image2``, that it is compared with.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, int]
    reader: Callable[[str], Examples]
    origin: str = ""
    columns: tuple[str, ...] = ()
    on_bad_image: str = "error"
    pairs: bool = False

    def read(self, split: str) -> Examples:
        """Random access to a split in TFDS syntax, such as ``train[:90%]``.

        Raises:
          UserError: a split the source does not have, an empty one, or no good image in it.
        """
        ranges = resolve_split(split, self.splits)
        if not sum(stop - start for _, start, stop in ranges):
            raise UserError(f"data source {self.name!r}: the split {split!r} is empty")
        examples = self.reader(split)
        if self.on_bad_image == "skip" and "image" in self.columns:
            examples = without_bad(examples, f"{self.name}, {split}")
        return examples


OpenSource = Callable[[str, str, Options], Source]
"""Opens a source: a function of (``config.data.source``, its text after the prefix, options)."""


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples in memory as a source has them: arrays [n, …] by column."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class EncodedExamples(ArrayExamples):
    """Examples in memory as a batch has them, preprocessed and with their targets."""


@dataclasses.dataclass(frozen=True)
class ActivationExamples:
    """Activations in place of inputs: what enters the first stage that trains.

    Attributes:
      read: example numbers i64[n] to activations, a tree of arrays [n * inputs, …]; view v of
        example i is number v * len(self) + i.
      targets: arrays [examples, …] by their name in a batch.
      views: fixed views per example; epoch e of training reads view e modulo `views`.
    """

    read: Callable[[np.ndarray], Any]
    targets: dict[str, np.ndarray]
    views: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise TypeError("activations are read by `gather`, many at a time")


def open_source(name: str, options: Options | None = None, *, data_dir: str = "") -> Source:
    """Opens a data source by name; reads metadata only, and downloads only with ``prepare``.

    Args:
      name: as in `SOURCES`.
      options: how it is read.
      data_dir: of the options, for short.

    Raises:
      UserError: an unknown source, one that is not prepared, or options that do not fit it.
    """
    options = options or Options(data_dir=data_dir)
    prefix, _, rest = name.partition(":")
    if prefix in SOURCES and (rest or prefix == name == "digits"):
        module, _ = SOURCES[prefix]
        return importlib.import_module(f"finetune_jax.data.{module}").open_(name, rest, options)
    door = DOOR.match(name)
    if door and name[door.end() :][:1] in ("", ":") and _is_importable(prefix):
        return _open_door(name, door.group(), name[door.end() + 1 :], options)
    written = [*(text for _, text in SOURCES.values()), "package.module:FUNCTION[:ARGUMENT]"]
    hint = "" if prefix in SOURCES else nearest(prefix, SOURCES)
    raise UserError(
        f"data.source: unknown source {name!r}.{hint} Expected one of: {', '.join(written)}"
    )


def _is_importable(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _open_door(name: str, door: str, argument: str, options: Options) -> Source:
    function = open_door(door, "data.source", object)
    source = function(name, argument, options) if callable(function) else function
    if not isinstance(source, Source) or source is function:
        found = type(source).__name__
        raise UserError(
            f"data.source: {door!r}: expected a function of (name, argument, options) that returns "
            f"a finetune_jax.data.sources.Source, found "
            f"{f'a result of type {found}' if callable(function) else found}"
        )
    return dataclasses.replace(source, name=name)


def options_of(data: Any) -> Options:
    """The options that a config's ``data`` gives."""
    given = {**data, **data.csv}
    names = [field.name for field in dataclasses.fields(Options)]
    return Options(**{name: given[name] for name in names} | {"header": tuple(data.csv.header)})


def open_configured(data: Any) -> Source:
    """The source of a config's ``data``; `open_source`'s errors."""
    return open_source(data.source, options_of(data))
