"""Where examples come from: ``digits`` (embedded) and ``tfds:NAME``; a registry by prefix.

An opened source knows its classes and split sizes without reading an image; `read` gives random
access to examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from finetune_jax.data.splits import resolve_split
from finetune_jax.errors import UserError, nearest


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
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, int]
    reader: Callable[[str], Examples]
    origin: str = ""

    def read(self, split: str) -> Examples:
        """Random access to a split in TFDS syntax, such as ``train[:90%]``.

        Raises:
          UserError: a split the source does not have, or an empty one.
        """
        ranges = resolve_split(split, self.splits)
        if not sum(stop - start for _, start, stop in ranges):
            raise UserError(f"data source {self.name!r}: the split {split!r} is empty")
        return self.reader(split)


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
      read: example numbers i64[n] to activations [n, …]; view v of example i is v * len(self) + i.
      targets: arrays [examples, …] by their name in a batch.
      views: fixed views per example; epoch e of training reads view e modulo `views`.
    """

    read: Callable[[np.ndarray], np.ndarray]
    targets: dict[str, np.ndarray]
    views: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        targets = {name: values[index] for name, values in self.targets.items()}
        return {"activation": self.read(np.array([index]))[0], **targets}


def open_source(name: str, *, data_dir: str = "") -> Source:
    """Opens a data source by name; reads metadata only, never downloads.

    Args:
      name: ``digits``, or ``tfds:NAME`` with an optional ``/CONFIG`` and ``:VERSION``.
      data_dir: TFDS folder of prepared datasets; empty takes TFDS's default.

    Raises:
      UserError: an unknown source, or one that is not prepared.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "tfds" and rest:
        return _open_tfds(name, rest, data_dir)
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    valid = [*_EMBEDDED, "tfds:cifar10"]
    raise UserError(f"data.source: unknown source {name!r}.{nearest(name, valid)}")


def _open_digits() -> Source:
    """UCI handwritten digits (1,797 images of 8x8, values 0 to 16) that scikit-learn ships.

    The stratified 60/20/20 split is fixed for ever: its seed is not the run's.
    """
    sizes = {"train": 1077, "validation": 360, "test": 360}

    def read(split: str) -> Examples:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        gray = np.round(data.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(gray[..., None], 3, axis=-1)
        labels = data.target.astype(np.int32)
        indices = np.arange(len(labels))
        rest, test = train_test_split(
            indices, test_size=sizes["test"], stratify=labels, random_state=0
        )
        train, validation = train_test_split(
            rest, test_size=sizes["validation"], stratify=labels[rest], random_state=0
        )
        parts = {"train": train, "validation": validation, "test": test}
        chosen = np.concatenate(
            [parts[part][start:stop] for part, start, stop in resolve_split(split, sizes)]
        )
        return ArrayExamples({"image": images[chosen], "label": labels[chosen]})

    return Source("digits", tuple("0123456789"), sizes, read)


_EMBEDDED: dict[str, Callable[[], Source]] = {"digits": _open_digits}


@dataclasses.dataclass(frozen=True)
class _TfdsExamples:
    source: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[int(index)]
        image = np.asarray(example["image"])
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return {"image": image, "label": int(example["label"])}


def _open_tfds(name: str, dataset: str, data_dir: str) -> Source:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        known = tfds.core.registered.list_imported_builders()
        known += tfds.core.visibility and _tfds_package_names()
        base = dataset.split("/")[0].split(":")[0]
        raise UserError(
            f"data.source: TFDS knows no dataset {dataset!r}, and none is prepared under "
            f"{data_dir or 'its default data_dir'!r}.{nearest(base, known)}"
        ) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"data.source: {name!r}: {error}") from None
    info = builder.info
    if not info.splits:
        raise UserError(
            f"data.source: {name!r} is not prepared in {builder.data_dir}; set data.data_dir to "
            f"where it is, or prepare it with "
            f"tfds.builder({dataset!r}).download_and_prepare(file_format='array_record')"
        )
    for feature in ("image", "label"):
        if feature not in info.features:
            raise UserError(
                f"data.source: {name!r} has no feature {feature!r}."
                f"{nearest(feature, info.features)}"
            )
    file_format = getattr(info.file_format, "value", str(info.file_format))
    if file_format not in ("array_record", "parquet"):
        raise UserError(
            f"data.source: {name!r} is prepared as {file_format!r}, which has no random access; "
            f"convert it once with: tfds convert_format --dataset_dir={builder.data_dir} "
            f"--out_file_format=array_record"
        )
    return Source(
        name,
        tuple(info.features["label"].names),
        {split: s.num_examples for split, s in info.splits.items()},
        lambda split: _TfdsExamples(builder.as_data_source(split=split)),
        _tfds_origin(builder),
    )


def _tfds_origin(builder: Any) -> str:
    """Folder, which ends in the version, and a hash of what the builder wrote about it."""
    description = (builder.data_path / "dataset_info.json").read_bytes()
    return f"{builder.data_path} {hashlib.sha256(description).hexdigest()}"


def _tfds_package_names() -> list[str]:
    """Names of the dataset builders TFDS ships, read from its package index without TensorFlow."""
    import tensorflow_datasets as tfds
    from etils import epath

    names = []
    for folder in ("image", "image_classification", "dataset_builders", "datasets"):
        root = epath.resource_path(tfds) / folder
        if root.exists():
            names += [p.stem for p in root.iterdir() if not p.name.startswith(("_", "."))]
    return names
