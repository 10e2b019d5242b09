"""Hugging Face datasets: ``hf:OWNER/NAME[:CONFIG]`` from the cache, or ``hf:PATH`` saved to disk.

This source needs the optional library ``datasets``. Columns keep their names, except the columns
that ``data.image_column``, ``data.label_column`` and ``data.mask_column`` name. The hub is
contacted only with ``data.prepare=True``. A dataset whose only split is ``train`` is split 80/10/10
by ``data.split_seed``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.data.examples import Examples, labels_of
from finetune_jax.data.images import decode, stored_values
from finetune_jax.data.label_columns import encode_columns, find_columns, strata, unknown_of
from finetune_jax.data.labels import Place, encode_labels, present
from finetune_jax.data.listing import FileList, renamed
from finetune_jax.data.skip import Subset
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import hold_out, resolve_split
from finetune_jax.errors import UserError, lacks, require_library


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a dataset; an image is decoded when its row is read.

    Attributes:
      dataset: a ``datasets.Dataset``, whose images are not decoded.
      split: name of the split, for messages.
      columns: by the dataset's name of a column, its name in an example.
      images: the dataset's names of the columns with images.
      encoded: labels of all rows in place of the dataset's; None to keep the dataset's labels.
      max_pixels: pixels of the largest image, ``data.max_pixels``.
    """

    dataset: Any
    split: str
    columns: dict[str, str]
    images: frozenset[str]
    encoded: list[Any] | None
    max_pixels: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[int(index)]
        example = {}
        for name, column in self.columns.items():
            value = row[name]
            if name in self.images:
                where = value.get("path") or f"{self.split} example {index}"
                content = value.get("bytes")
                read = stored_values if column == "mask" else decode
                value = read(where if content is None else content, where, self.max_pixels)
            example[column] = value
        if self.encoded is not None:
            example["label"] = self.encoded[int(index)]
        return example

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        if self.encoded is not None:
            return self.encoded
        name = next(name for name, column in self.columns.items() if column == "label")
        return list(self.dataset[name])


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens a dataset.

    Raises:
      UserError: the library ``datasets`` is not installed, the dataset is neither saved nor in the
        cache, or the kind of its labels cannot be inferred.
    """
    try:
        import datasets

        require_library(datasets)
    except ImportError:
        raise lacks(f"data.source={name}", "the library datasets", "hf-data") from None
    loaded = _load(datasets, name, rest, options)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    first = next(iter(loaded.values()))
    columns = {column: column for column in first.column_names}
    targets = renamed(options, first.column_names, repr(name))
    for column, key in targets.items():
        columns = {k: v for k, v in columns.items() if v != key or k == column}
        columns[column] = key
    images = frozenset(c for c in columns if isinstance(first.features[c], datasets.Image))
    label = next((name for name, column in columns.items() if column == "label"), "")
    if options.label_columns:
        columns = {column: key for column, key in columns.items() if key != "label"}
        names, labels = _columns(loaded, name, options)
    else:
        names, labels = _labels(datasets, loaded, label, name, options)
    rows: dict[str, Examples] = {}
    for split, dataset in loaded.items():
        for column in images:
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        rows[split] = _Rows(dataset, split, columns, images, labels.get(split), options.max_pixels)
    if rows.keys() == {"train"}:
        train = rows["train"]
        own = labels.get("train") or (loaded["train"][label] if label else [0] * len(train))
        parts = hold_out(strata(list(own)), options.split_seed)
        rows = {split: Subset(train, indices) for split, indices in parts.items()}
    sizes = {split: len(part) for split, part in rows.items()}

    def read(split: str) -> Examples:
        parts = resolve_split(split, sizes)
        if len(parts) > 1:
            return _Joined([Subset(rows[p], np.arange(a, b)) for p, a, b in parts])
        part, start, stop = parts[0]
        return Subset(rows[part], np.arange(start, stop))

    files = sorted({Path(f["filename"]) for d in loaded.values() for f in d.cache_files})
    # Folders of the cache have hashes in their names that depend on the machine.
    listed = FileList.of(
        files[0].parent if files else Path(rest),
        {f"{number} {file.name}": file for number, file in enumerate(files)},
    )

    def contents() -> dict[str, Any]:
        version = getattr(next(iter(loaded.values())).info, "version", None)
        return {"version": str(version or ""), **(listed.contents() if files else {})}

    return Source(
        name,
        names,
        sizes,
        read,
        listed.origin(options),
        tuple(dict.fromkeys((*columns.values(), *(["label"] if labels else [])))),
        options.on_bad_image,
        "image2" in targets.values(),
        contents,
        {split: present(labels_of(part)) for split, part in rows.items() if labels and names},
        loaded.keys() == {"train"},
        sum(unknown_of(part) for part in labels.values()),
    )


class _Joined:
    """The examples of several parts, one part after another."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        return [label for part in self.parts for label in labels_of(part)]


def _load(datasets: Any, name: str, rest: str, options: Options) -> Any:
    path = Path(rest).expanduser()
    try:
        if path.is_dir():
            return datasets.load_from_disk(str(path))
        owner, _, config = rest.partition(":")
        local = datasets.DownloadConfig(local_files_only=not options.prepare)
        return datasets.load_dataset(
            owner,
            config or None,
            cache_dir=options.data_dir or None,
            download_config=local,
        )
    except Exception as error:  # the library and the client of the hub raise many kinds of errors
        hint = "" if options.prepare else "; data.prepare=True downloads it"
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"data.source: {name!r} is neither a folder that the library datasets saved nor a "
            f"dataset in its cache{hint} ({type(error).__name__}: {reason})"
        ) from None


def _labels(
    datasets: Any, loaded: Any, label: str, name: str, options: Options
) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    """Class names, and encoded labels by split; no labels where the dataset's need no encoding."""
    if not label:
        return (), {}
    kind = next(iter(loaded.values())).features[label]
    several = hasattr(kind, "feature")
    kind = getattr(kind, "feature", kind)
    if isinstance(kind, datasets.ClassLabel):
        _require_classes(loaded, label, several)
        return tuple(kind.names), {}
    if not isinstance(kind, datasets.Value):
        return (), {}
    flat, place, split_up = _flat(loaded, label)
    names, encoded = encode_labels(flat, options, f"{name}, column {label!r}", place)
    return names, split_up(encoded)


def _columns(
    loaded: Any, name: str, options: Options
) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    """Class names and labels by split, from ``data.label_columns``."""
    names = find_columns(options, next(iter(loaded.values())).column_names, repr(name))
    _, place, split_up = _flat(loaded, names[0])
    return names, split_up(
        encode_columns([_flat(loaded, column)[0] for column in names], options, place)
    )


def _flat(loaded: Any, column: str) -> tuple[list[Any], Place, Callable[[list[Any]], Any]]:
    """Values of all splits, the place of each, and the function to lists of them by split."""
    values = {split: list(dataset[column]) for split, dataset in loaded.items()}
    places = [(split, row) for split, part in values.items() for row in range(len(part))]

    def split_up(flat: list[Any]) -> dict[str, list[Any]]:
        found, start = {}, 0
        for split, part in values.items():
            found[split] = flat[start : start + len(part)]
            start += len(part)
        return found

    def place(row: int) -> str:
        return f"split {places[row][0]!r}, row {places[row][1]}, column {column!r}"

    return [v for part in values.values() for v in part], place, split_up


def _require_classes(loaded: Any, label: str, several: bool) -> None:
    """Raises UserError for an example of a labelled split whose class is missing."""
    for split, dataset in loaded.items():
        for row, value in enumerate([] if several else dataset[label]):
            if value is None:
                raise UserError(
                    f"split {split!r}, row {row}, column {label!r}: the label is missing; remove "
                    f"the row"
                )
