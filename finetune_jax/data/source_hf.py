"""Hugging Face datasets: ``hf:OWNER/NAME[:CONFIG]`` from the cache, or ``hf:PATH`` saved to disk.

An extra: needs the ``datasets`` library. Columns keep their names, but for those that
``data.image_column``, ``data.label_column`` and ``data.mask_column`` name. The hub is asked only
with ``data.prepare=True``. A dataset with ``train`` alone is split 80/10/10 by ``data.split_seed``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.data.images import decode
from finetune_jax.data.labels import encode_labels
from finetune_jax.data.listing import fingerprint, renamed
from finetune_jax.data.skip import Subset
from finetune_jax.data.sources import Examples, Options, Source
from finetune_jax.data.splits import hold_out, resolve_split
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a dataset, images not yet decoded; `labels` in place of its own, if given."""

    dataset: Any
    split: str
    columns: dict[str, str]
    images: frozenset[str]
    labels: list[Any] | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[int(index)]
        example = {}
        for name, column in self.columns.items():
            value = row[name]
            if name in self.images:
                where = value.get("path") or f"{self.split} example {index}"
                if column == "mask":
                    value = _indices(value)
                else:
                    content = value.get("bytes")
                    value = decode(content, where) if content is not None else decode(where)
            example[column] = value
        if self.labels is not None:
            example["label"] = self.labels[int(index)]
        return example


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens a dataset.

    Raises:
      UserError: no ``datasets`` library, no such dataset here, or unclear labels.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.source: {name!r} needs the datasets library: pip install datasets"
        ) from None
    loaded = _load(datasets, name, rest, options)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    first = next(iter(loaded.values()))
    columns = {column: column for column in first.column_names}
    called = renamed(options, first.column_names, repr(name))
    for found, key in called.items():
        columns = {k: v for k, v in columns.items() if v != key or k == found}
        columns[found] = key
    images = frozenset(c for c in columns if isinstance(first.features[c], datasets.Image))
    label = next((name for name, column in columns.items() if column == "label"), "")
    names, labels = _labels(datasets, loaded, label, name, options)
    rows: dict[str, Examples] = {}
    for split, dataset in loaded.items():
        for column in images:
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        rows[split] = _Rows(dataset, split, columns, images, labels.get(split))
    if rows.keys() == {"train"}:
        whole = rows["train"]
        known = labels.get("train") or (loaded["train"][label] if label else [0] * len(whole))
        parts = hold_out(list(known), options.split_seed)
        rows = {split: Subset(whole, indices) for split, indices in parts.items()}
    sizes = {split: len(part) for split, part in rows.items()}

    def read(split: str) -> Examples:
        parts = resolve_split(split, sizes)
        if len(parts) > 1:
            return _Joined([Subset(rows[p], np.arange(a, b)) for p, a, b in parts])
        part, start, stop = parts[0]
        return Subset(rows[part], np.arange(start, stop))

    files = sorted({Path(f["filename"]) for d in loaded.values() for f in d.cache_files})
    return Source(
        name,
        names,
        sizes,
        read,
        fingerprint(files[0].parent if files else Path(rest), files, options),
        tuple(columns.values()),
        options.on_bad_image,
        "image2" in called.values(),
    )


class _Joined:
    """Examples one after another."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]


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
    except Exception as error:  # the library and the hub's client raise some thirty kinds
        hint = "" if options.prepare else "; data.prepare=True downloads it"
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"data.source: {name!r} is neither a folder that datasets saved nor a dataset in its "
            f"cache{hint} ({type(error).__name__}: {reason})"
        ) from None


def _labels(
    datasets: Any, loaded: Any, label: str, name: str, options: Options
) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    """Class names, and labels by split where they are not what the dataset has already."""
    if not label:
        return (), {}
    kind = next(iter(loaded.values())).features[label]
    kind = getattr(kind, "feature", kind)
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names), {}
    if not isinstance(kind, datasets.Value):
        return (), {}
    values = {split: list(dataset[label]) for split, dataset in loaded.items()}
    flat = [v for part in values.values() for v in part]
    names, encoded = encode_labels(flat, options, f"{name}, column {label!r}")
    found, start = {}, 0
    for split, part in values.items():
        found[split] = encoded[start : start + len(part)]
        start += len(part)
    return names, found


def _indices(value: dict[str, Any]) -> np.ndarray:
    """A mask's stored numbers: palette pictures hold class numbers, not colours."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as image:
        return np.array(image)
