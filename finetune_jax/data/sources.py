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
import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from finetune_jax.data.examples import Examples
from finetune_jax.data.images import MAX_PIXELS
from finetune_jax.data.skip import without_bad
from finetune_jax.data.splits import resolve_split
from finetune_jax.doors import DOOR, open_door
from finetune_jax.errors import UserError, nearest, tuple_hint

# By prefix: the module whose `open_` opens the source, and the syntax of ``config.data.source``.
SOURCES = {
    "digits": ("source_digits", "digits[:attributes|:masks|:pairs]"),
    "tfds": ("source_tfds", "tfds:NAME[/CONFIG][:VERSION]"),
    "folder": ("source_folder", "folder:PATH"),
    "csv": ("source_csv", "csv:PATH"),
    "hf": ("source_hf", "hf:OWNER/NAME[:CONFIG] or hf:PATH"),
    "planned": ("source_planned", "planned:EXAMPLES:CLASSES (to plan without data)"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of reading a source: keys of ``config.data``, explained in `finetune_jax.config`.

    A source ignores options that do not apply to it. ``task_labels`` is no key, but
    `finetune_jax.tasks.Task.labels` of the task.
    """

    data_dir: str = ""
    prepare: bool = False
    image_column: str = "image"
    label_column: str = "label"
    label_columns: tuple[str, ...] = ()
    mask_column: str = "mask"
    label_kind: str = ""
    label_sep: str = "|"
    label_until: str = ""
    class_order: tuple[str, ...] = ()
    classes: str = ""
    task_labels: str = ""
    split_seed: int = 0
    on_bad_image: str = "error"
    max_pixels: int = MAX_PIXELS
    sep: str = ""
    header: tuple[str, ...] = ()
    encoding: str = "utf-8"
    quoting: bool = True
    extra: str = "error"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened data source.

    Attributes:
      name: the text of ``config.data.source``.
      class_names: names of the classes, in label order; empty where the labels are not classes.
      splits: number of examples per split.
      reader: function of a split in TFDS syntax, such as ``train[:90%]``, to its examples.
      origin: place and version of the data, which are part of the keys of caches, so that caches of
        two versions of the data differ. It includes the times of the last change of files.
      columns: names of the columns of an example; empty where the source does not know them.
      on_bad_image: ``error``, or ``skip``: `read` decodes all images of the split once, prints the
        names of bad images and leaves them out.
      pairs: whether an example has a second image, ``image2``, for a comparison with the first.
      contents: function to JSON about the content of the data, such as digests of files, versions,
        and the order of examples. It must not depend on the place of the data or on times. It is
        called at most once, before a run starts; None where the source knows no more than the
        other attributes.
      present: numbers of the classes that have examples, by split; empty where the source does not
        know them before it reads.
      drawn: whether the splits are random parts of one table.
      unknown: number of labels that are unknown (nan), of examples that have several.
      cure: function of the name of a column that the source does not have to a sentence about what
        may be wrong; None where the source knows nothing about it.
      held_out: number of training examples that are held out as the split ``validation``, which the
        data itself does not have; see `finetune_jax.data.held_out`.
      missing: splits that the config asks for and that the data does not have.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, int]
    reader: Callable[[str], Examples]
    origin: str = ""
    columns: tuple[str, ...] = ()
    on_bad_image: str = "error"
    pairs: bool = False
    contents: Callable[[], dict[str, Any]] | None = None
    present: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)
    drawn: bool = False
    unknown: int = 0
    cure: Callable[[str], str] | None = None
    held_out: int = 0
    missing: tuple[str, ...] = ()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the data is, as JSON: equal for equal data in another place.

        Returns:
          ``classes``, ``splits`` (number of examples by split), ``columns``, and the keys of
          `contents`.

        Raises:
          UserError: a file cannot be read.
        """
        return {
            "classes": list(self.class_names),
            "splits": dict(self.splits),
            "columns": list(self.columns),
            **(self.contents() if self.contents else {}),
        }

    def read(self, split: str) -> Examples:
        """Random access to a split in TFDS syntax, such as ``train[:90%]``.

        Raises:
          UserError: an unknown split, an empty split, or a split whose images are all bad.
        """
        ranges = resolve_split(split, self.splits)
        if not sum(stop - start for _, start, stop in ranges):
            raise UserError(f"data source {self.name!r}: the split {split!r} is empty")
        examples = self.reader(split)
        if self.on_bad_image == "skip" and "image" in self.columns:
            examples = without_bad(examples, f"{self.name}, {split}")
        return examples


def require_column(source: Source, column: str, key: str) -> None:
    """Raises UserError if a source knows its columns and lacks one that the config's model reads.

    Args:
      source: the source.
      column: name of a column of an example.
      key: the key of the config that names the column, for the message.
    """
    if not source.columns or column in source.columns:
        return
    cure = source.cure(column) if source.cure else ""
    if key == "data.mask_column" and source.name.startswith(("folder:", "csv:")):
        cure = (
            " Masks are read from tfds: and hf:, or from a source of your own (docs/extending.md)."
        )
    cure = tuple_hint(key, column) or cure
    raise UserError(
        f"{key}: the model reads {column!r}, and examples of {source.name!r} have no such column."
        f"{nearest(column, source.columns)}{cure}"
    )


OpenSource = Callable[[str, str, Options], Source]
"""Opens a source: a function of (``config.data.source``, its text after the prefix, options)."""


def open_source(name: str, options: Options | None = None, *, data_dir: str = "") -> Source:
    """Opens a data source; reads only metadata, and downloads only with the option ``prepare``.

    Args:
      name: text of ``config.data.source``: a prefix of `SOURCES` and its argument, or the import
        path of an `OpenSource` of another package.
      options: options of reading.
      data_dir: the option of this name, if `options` is None.

    Raises:
      UserError: an unknown source, a source that is not prepared, or options that do not fit it.
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
    path = Path(name).expanduser()
    if path.exists() and prefix not in SOURCES:
        hint = f" Did you mean '{'folder' if path.is_dir() else 'csv'}:{name}'?"
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


def options_of(data: ConfigDict, task_labels: str = "") -> Options:
    """The options in ``config.data``, for a task with `finetune_jax.tasks.Task.labels`."""
    given = {**data, **data.csv, "task_labels": task_labels}
    names = [field.name for field in dataclasses.fields(Options)]
    values: dict[str, Any] = {name: given[name] for name in names}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Options(**values)
