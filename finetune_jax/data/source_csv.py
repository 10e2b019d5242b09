"""Tables in text files: ``csv:PATH``, with a header row or ``config.data.csv.header``.

A single file with a column ``split`` is split by that column; another single file is split
80/10/10 by ``data.split_seed``. Several files, ``csv:train=A.csv,validation=B.csv,test=C.csv``, are
one split each; ``train=`` can be left out for a file whose name has the split in it
(``sts-train.csv``, ``dev.tsv``). Every split is in a fixed random order, so that its slices
(``train[:90%]``) are random samples.

An example has the columns of its row as texts, by their names. The column ``data.label_column``, if
the file has it, is encoded by `encode_labels` and named ``label``. The column
``data.image_column``, if the file has it, has paths of images relative to the folder of the file;
the decoded image is named ``image``. A second column of images is named ``image2``.
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any, Literal

from finetune_jax.data.examples import Examples
from finetune_jax.data.labels import encode_labels, present
from finetune_jax.data.listing import (
    FileList,
    TableExamples,
    content_digest,
    order_digest,
    renamed,
)
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import hold_out, resolve_split, shuffled
from finetune_jax.errors import UserError, nearest

# Names of splits in files, and the split that each name stands for.
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
# By text of ``data.csv.sep``.
_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "space": " "}


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens tables: reads the files, but decodes no image.

    Raises:
      UserError: a file is missing or is not a table of this kind, or the kind of its labels cannot
        be inferred.
    """
    files = _files(rest)
    columns: dict[str, list[str]] = {}
    splits: list[str] = []
    folders: list[Path] = []
    for split, path in files:
        table = read_table(path, options)
        if columns and table.keys() != columns.keys():
            raise UserError(
                f"{path}: columns {', '.join(table)}, but {files[0][1]} has {', '.join(columns)}"
            )
        count = len(next(iter(table.values())))
        splits += [split] * count
        folders += [path.parent] * count
        for column, texts in table.items():
            columns.setdefault(column, []).extend(texts)
    where = ", ".join(str(path) for _, path in files)
    targets = renamed(options, columns, where)
    label = next((column for column, key in targets.items() if key == "label"), "")
    names: tuple[str, ...] = ()
    values: dict[str, list[Any]] = dict(columns)
    if label:
        names, values["label"] = encode_labels(
            columns[label], options, f"{where}, column {label!r}"
        )
    images: dict[str, list[str]] = {}
    image_files: dict[str, Path] = {}
    for column, key in targets.items():
        if key.startswith("image"):
            written = values.pop(column)
            images[key] = [str(f / v) for f, v in zip(folders, written, strict=True)]
            for folder, value in zip(folders, written, strict=True):
                here = folder == folders[0]
                name_of = value if here else f"{os.path.relpath(folder, folders[0])}/{value}"
                image_files[name_of] = folder / value
            values[key.replace("image", "path")] = images[key]
    parts = _parts(splits, columns, values.get("label"), options, where)
    sizes = {split: len(rows) for split, rows in parts.items()}
    encoded = values.get("label", ())

    def read(split: str) -> Examples:
        ranges = resolve_split(split, sizes)
        rows = [row for part, start, stop in ranges for row in parts[part][start:stop]]
        return TableExamples(
            {column: [column_values[i] for i in rows] for column, column_values in values.items()},
            {column: [files_of[i] for i in rows] for column, files_of in images.items()},
            options.max_pixels,
        )

    paths = [path for _, path in files]
    tables = {f"{split}={path.name}".removeprefix("="): path for split, path in files}

    pictures = FileList.of(paths[0].parent, image_files, options.on_bad_image)

    def contents() -> dict[str, Any]:
        return {
            "order": {split: order_digest(rows) for split, rows in parts.items()},
            "tables": {name: content_digest(path) for name, path in tables.items()},
            **(pictures.contents() if image_files else {}),
        }

    return Source(
        name,
        names,
        sizes,
        read,
        FileList.of(paths[0].parent, tables | image_files, options.on_bad_image).origin(options),
        (*values, *images),
        options.on_bad_image,
        len(images) == 2,
        contents,
        {split: present(encoded[i] for i in rows) for split, rows in parts.items() if names},
        splits[0] == "" and "split" not in columns,
    )


def _files(text: str) -> list[tuple[str, Path]]:
    """(split, file) pairs; the split of a single file without ``train=`` is ""."""
    found: list[tuple[str, Path]] = []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        split, equals, file = part.partition("=")
        if not equals:
            split, file = "", part
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"data.source: {path}: no such file")
        if equals and split not in _SPLITS.values():
            raise UserError(
                f"data.source: unknown split {split!r}.{nearest(split, set(_SPLITS.values()))}"
            )
        if not split and len(parts) > 1:
            words = re.findall(r"[a-z]+", path.stem.lower())
            named = {_SPLITS[word] for word in words if word in _SPLITS}
            if len(named) != 1:
                raise UserError(
                    f"data.source: the name of {path.name} does not say which split it is; write "
                    f"train={file}, validation={file} or test={file}"
                )
            split = named.pop()
        if split in dict(found):
            raise UserError(
                f"data.source: {dict(found)[split]} and {path} are both the split {split!r}"
            )
        found.append((split, path))
    if not found:
        raise UserError("data.source: 'csv:' needs a file")
    return found


def read_table(path: Path, options: Options) -> dict[str, list[str]]:
    """The columns of a file by name; an error in a row names the line."""
    separator = _SEPARATORS.get(options.sep, options.sep)
    separator = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if options.quoting else csv.QUOTE_NONE
    encoding = "utf-8-sig" if options.encoding.lower() in ("utf-8", "utf8") else options.encoding
    columns: list[list[str]] = []
    header = list(options.header)
    # Texts may be longer than the module's default limit of 128 KiB.
    csv.field_size_limit(2**30)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=options.quoting)
            for row in reader:
                if not row:
                    continue
                if not columns:
                    has_header_row = not header
                    header = header or row
                    columns = [[] for _ in header]
                    if has_header_row:
                        continue
                row = _fit(row, len(header), separator, options, f"{path}, line {reader.line_num}")
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {options.encoding} at byte {error.start}; set data.csv.encoding, for "
            f"instance to 'latin-1'"
        ) from None
    except (LookupError, TypeError) as error:
        raise UserError(f"data.csv: {error}") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; if quotes do not enclose fields in this "
            f"file, set data.csv.quoting to False"
        ) from None
    if not columns or not columns[0]:
        raise UserError(f"{path}: no rows")
    if len(set(header)) < len(header):
        repeated = sorted({name for name in header if header.count(name) > 1})
        raise UserError(f"{path}: more than one column is called {', '.join(map(repr, repeated))}")
    return dict(zip(header, columns, strict=True))


def _fit(row: list[str], count: int, separator: str, options: Options, where: str) -> list[str]:
    """The row with `count` fields; ``data.csv.extra`` decides about additional fields."""
    if len(row) > count and options.extra == "drop":
        return row[:count]
    if len(row) > count and options.extra == "join":
        return [*row[: count - 1], separator.join(row[count - 1 :])]
    if len(row) != count:
        hint = "; data.csv.extra can 'drop' or 'join' additional fields" if len(row) > count else ""
        raise UserError(f"{where}: expected {count} fields, found {len(row)}{hint}")
    return row


def _parts(
    splits: list[str],
    columns: dict[str, list[str]],
    labels: list[Any] | None,
    options: Options,
    where: str,
) -> dict[str, list[int]]:
    """Row numbers by split, each split in a fixed random order."""
    if splits[0] == "" and "split" in columns:
        splits = columns["split"]
        unknown = sorted({s for s in splits if s.strip().lower() not in _SPLITS})
        if unknown:
            raise UserError(
                f"{where}: unknown split {unknown[0]!r} in the column 'split'."
                f"{nearest(unknown[0], _SPLITS)}"
            )
        splits = [_SPLITS[s.strip().lower()] for s in splits]
    if splits[0] == "":
        strata = labels if labels and options.label_kind != "text" else [0] * len(splits)
        chosen = hold_out(strata, options.split_seed)
        return {split: indices.tolist() for split, indices in chosen.items()}
    parts: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        parts.setdefault(split, []).append(row)
    return {
        split: [rows[i] for i in shuffled(len(rows), options.split_seed)]
        for split, rows in parts.items()
    }
