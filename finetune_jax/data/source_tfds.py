"""Prepared TFDS datasets, read at random without TensorFlow: ``tfds:NAME[/CONFIG][:VERSION]``.

An example has the features of the dataset by their names: an image as uint8[height, width, 3], a
text as str, a class as its number, and any other feature unchanged. The features that
``data.image_column``, ``data.label_column`` and ``data.mask_column`` name are called ``image``,
``label`` and ``mask``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_jax.data.images import require_size
from finetune_jax.data.label_columns import encode_columns, find_columns
from finetune_jax.data.listing import renamed
from finetune_jax.data.sources import Options, Source
from finetune_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class _TfdsExamples:
    """Examples of a split.

    Attributes:
      source: TFDS's random access to the split.
      features: by feature, its name in an example and the conversion of its value.
      options: ``label_columns`` are the features that are the label, if there are any.
    """

    source: Sequence[dict[str, Any]]
    features: dict[str, tuple[str, Callable[[Any], Any]]]
    options: Options = Options()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.source[int(index)]
        example = {column: change(stored[name]) for name, (column, change) in self.features.items()}
        if self.options.label_columns:
            example["label"] = self._label(stored, index)
        return example

    def _label(self, stored: dict[str, Any], index: int) -> Any:
        columns = [[stored[name]] for name in self.options.label_columns]
        return encode_columns(columns, self.options, lambda _: f"example {index}")[0]

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        if self.options.label_columns:
            return [self._label(self.source[i], i) for i in range(len(self))]
        name, convert = next((n, c) for n, (col, c) in self.features.items() if col == "label")
        return [convert(self.source[i][name]) for i in range(len(self))]


def _decoded(
    feature: Any, max_pixels: int, convert: Callable[[Any], Any]
) -> Callable[[bytes], Any]:
    """`convert` of an image that TFDS decodes, if the image is not too large."""

    def decode(content: bytes) -> Any:
        require_size(content, "an image of the dataset", max_pixels)
        return convert(np.asarray(feature.decode_example_np(content)))

    return decode


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _mask(mask: np.ndarray) -> np.ndarray:
    return mask[..., 0] if mask.ndim == 3 else mask


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _same(value: Any) -> Any:
    return value


def _builder(name: str, dataset: str, options: Options) -> Any:
    """TFDS's builder of a dataset; nothing is read but metadata."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=options.data_dir or None)
    except tfds.core.DatasetNotFoundError:
        known = tfds.core.registered.list_imported_builders()
        known += tfds.core.visibility and _tfds_package_names()
        base = dataset.split("/")[0].split(":")[0]
        raise UserError(
            f"data.source: TFDS knows no dataset {dataset!r}, and none is prepared under "
            f"{options.data_dir or 'its default data_dir'!r}.{nearest(base, known)}"
        ) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"data.source: {name!r}: {error}") from None
    return builder


def open_(name: str, dataset: str, options: Options) -> Source:
    """Opens a prepared dataset; with ``data.prepare``, prepares it first where necessary.

    Raises:
      UserError: an unknown dataset, a dataset that is not prepared, a file format without random
        access, or a column that the dataset does not have.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, dataset, options)
    if not builder.info.splits and options.prepare:
        _prepare(name, builder)
    info = builder.info
    if not info.splits:
        raise UserError(
            f"data.source: {name!r} is not prepared in {builder.data_dir}; set data.data_dir to "
            f"the folder of the dataset, or prepare it with data.prepare=True, which is "
            f"tfds.builder({dataset!r}).download_and_prepare(file_format='array_record')"
        )
    file_format = getattr(info.file_format, "value", str(info.file_format))
    if file_format not in ("array_record", "parquet"):
        raise UserError(
            f"data.source: {name!r} is prepared as {file_format!r}, which has no random access; "
            f"convert it once with: tfds convert_format --dataset_dir={builder.data_dir} "
            f"--out_file_format=array_record"
        )
    features = dict(info.features.items())
    targets = renamed(options, features, repr(name))
    columns = _columns(features, targets, options.max_pixels)
    undecoded = {f: tfds.decode.SkipDecoding() for f in columns if _is_image(features[f])}
    names = _class_names(features, columns)
    if options.label_columns:
        names = find_columns(options, features, repr(name))
        # One example does not show whether every example has exactly one label.
        kind = options.label_kind or options.task_labels or "classes"
        options = dataclasses.replace(options, label_columns=names, label_kind=kind)
        columns = {f: target for f, target in columns.items() if target[0] != "label"}
    return Source(
        name,
        names,
        {split: s.num_examples for split, s in info.splits.items()},
        lambda split: _TfdsExamples(
            builder.as_data_source(split=split, decoders=undecoded), columns, options
        ),
        _origin(builder, options),
        (
            *(column for column, _ in columns.values()),
            *(["label"] if options.label_columns else []),
        ),
        pairs="image2" in targets.values(),
        contents=lambda: {"version": str(builder.version), "description": _description(builder)},
    )


def metadata(name: str, options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class names and the columns of ``tfds:NAME``, which need not be prepared.

    Raises:
      UserError: an unknown dataset, or a column that the dataset does not have.
    """
    builder = _builder(name, name.removeprefix("tfds:"), options)
    features = dict(builder.info.features.items())
    columns = _columns(features, renamed(options, features, repr(name)), options.max_pixels)
    return _class_names(features, columns), tuple(column for column, _ in columns.values())


def _class_names(features: dict[str, Any], columns: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of the label; empty if the label is no class."""
    import tensorflow_datasets as tfds

    label = next((f for f, (column, _) in columns.items() if column == "label"), "")
    # A feature with several labels per example is a list of a class feature.
    labels = getattr(features.get(label), "feature", features.get(label))
    return tuple(labels.names or ()) if isinstance(labels, tfds.features.ClassLabel) else ()


def _columns(
    features: dict[str, Any], targets: dict[str, str], max_pixels: int
) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """By feature, its name in an example and the conversion of its value.

    Args:
      features: the features of the dataset, by name.
      targets: result of `renamed`.
      max_pixels: pixels of the largest image, ``data.max_pixels``.
    """
    import tensorflow_datasets as tfds

    columns: dict[str, tuple[str, Callable[[Any], Any]]] = {}
    for feature, kind in features.items():
        column = targets.get(feature, feature)
        if column in targets.values() and feature not in targets:
            continue  # another feature has this name in an example
        if column == "mask":
            convert: Callable[[Any], Any] = _mask
        elif _is_image(kind):
            convert = _rgb
        elif isinstance(kind, tfds.features.Text):
            convert = _text
        elif isinstance(kind, tfds.features.ClassLabel):
            convert = int
        else:
            convert = _same
        if _is_image(kind):
            convert = _decoded(kind, max_pixels, convert)
        columns[feature] = (column, convert)
    return columns


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image)


def _prepare(name: str, builder: Any) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # builders and downloads raise many kinds of errors
        raise UserError(
            f"data.prepare: {name!r} could not be prepared in {builder.data_dir}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _origin(builder: Any, options: Options) -> str:
    """The dataset's folder, which ends in its version, and a hash of ``dataset_info.json``."""
    read = f"{options.image_column} {options.label_column} {options.mask_column}"
    read += f" {options.label_columns} {options.label_kind}" if options.label_columns else ""
    return f"{builder.data_path} {_description(builder)} {read}"


def _description(builder: Any) -> str:
    """SHA-256 of ``dataset_info.json``, which has the sizes of all parts of the dataset."""
    return hashlib.sha256((builder.data_path / "dataset_info.json").read_bytes()).hexdigest()


def _tfds_package_names() -> list[str]:
    """Names of the dataset builders that TFDS ships, read from its folders without TensorFlow."""
    import tensorflow_datasets as tfds
    from etils import epath

    names = []
    for folder in ("image", "image_classification", "dataset_builders", "datasets"):
        root = epath.resource_path(tfds) / folder
        if root.exists():
            names += [p.stem for p in root.iterdir() if not p.name.startswith(("_", "."))]
    return names
