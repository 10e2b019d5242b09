"""Tables in text files: ``csv:PATH``, with a header row or ``config.data.csv.header``.

A single file with a column ``split`` (or ``set``, ``subset``, …) is split by that column; another
single file is split 80/10/10 by ``data.split_seed``. Several files,
``csv:train=A.csv,validation=B.csv,test=C.csv``, are one split each; ``train=`` can be left out
for a file whose name has the split in it (``sts-train.csv``, ``dev.tsv``). A folder stands for
the tables in it whose names have a split. Every split is in a fixed random order, so that its
slices (``train[:90%]``) are random samples.

An example has the columns of its row as texts, by their names. The column ``data.label_column``, if
the file has it, is encoded by `encode_labels` and named ``label``; in its place the columns
``data.label_columns`` may be encoded by `encode_columns`. The column
``data.image_column``, if the file has it, has paths of images relative to the folder of the file;
the decoded image is named ``image``. A second column of images is named ``image2``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.data.examples import Examples
from finetune_jax.data.images import nearby, path_hint
from finetune_jax.data.label_columns import encode_columns, find_columns, unknown_of
from finetune_jax.data.label_columns import strata as label_strata
from finetune_jax.data.labels import Place, encode_labels, present
from finetune_jax.data.listing import (
    FileList,
    TableExamples,
    content_digest,
    order_digest,
    renamed,
)
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import SPLIT_NAMES, hold_out, resolve_split, shuffled
from finetune_jax.data.table_file import Table, read_table
from finetune_jax.errors import UserError, nearest
from finetune_jax.progress import say

_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "usage", "data_split")
# Columns by which fastai marks the rows of the validation split.
_MARKS = ("is_valid", "is_val", "is_validation")
_BOOLEANS = {"true", "false", "0", "1", "0.0", "1.0"}


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens tables: reads the files, but decodes no image.

    Raises:
      UserError: a file is missing or is not a table of this kind, or the kind of its labels cannot
        be inferred.
    """
    files = _files(rest)
    tables = [read_table(path, options) for _, path in files]
    _require_labels(tables, options)
    columns = _joined(tables)
    rows_of = [(number, row) for number, t in enumerate(tables) for row in range(len(t.lines))]
    splits = [files[number][0] for number, _ in rows_of]
    parents = [path.parent for _, path in files]
    folders = [parents[number] for number, _ in rows_of]
    where = ", ".join(str(path) for _, path in files)

    def place(row: int) -> str:
        number, line = rows_of[row]
        return tables[number].place(line)

    targets = _targets(options, tables[0], columns, where)
    values: dict[str, list[Any]] = dict(columns)
    names: tuple[str, ...] = ()
    label = next((column for column, key in targets.items() if key == "label"), "")
    if options.label_columns:
        names = tuple(column for column, key in targets.items() if key == "")
        values["label"] = encode_columns([columns[c] for c in names], options, place)
    elif label:
        names, values["label"] = encode_labels(
            columns[label], options, f"{where}, column {label!r}", place
        )
    unknown = unknown_of(values["label"]) if names else 0
    images: dict[str, list[str]] = {}
    image_files: dict[str, Path] = {}
    for column, key in targets.items():
        if key.startswith("image"):
            written = [_image_name(f, v) for f, v in zip(folders, values.pop(column), strict=True)]
            if "" in written and options.on_bad_image == "error":
                raise UserError(
                    f"{place(written.index(''))}: the path of the image in the column {column!r} "
                    f"is empty; data.on_bad_image='skip' leaves such rows out"
                )
            images[key] = [str(f / v) for f, v in zip(folders, written, strict=True)]
            for folder, value in zip(folders, written, strict=True):
                here = folder == folders[0]
                name_of = value if here else f"{os.path.relpath(folder, folders[0])}/{value}"
                image_files[name_of] = folder / value
            values[key.replace("image", "path")] = images[key]
    if splits[0] == "":
        _say_split(name, columns)
    parts = _parts(splits, columns, values.get("label"), options, place)
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
    named = {f"{split}={path.name}".removeprefix("="): path for split, path in files}

    try:
        pictures = FileList.of(paths[0].parent, image_files, options.on_bad_image)
    except UserError as error:
        raise _with_place(error, images, place) from None

    def contents() -> dict[str, Any]:
        return {
            "order": {split: order_digest(rows) for split, rows in parts.items()},
            "tables": {name: content_digest(path) for name, path in named.items()},
            **(pictures.contents() if image_files else {}),
        }

    return Source(
        name,
        names,
        sizes,
        read,
        FileList.of(paths[0].parent, named | image_files, options.on_bad_image).origin(options),
        (*values, *images),
        options.on_bad_image,
        len(images) == 2,
        contents,
        {split: present(encoded[i] for i in rows) for split, rows in parts.items() if names},
        splits[0] == "" and not _split_column(columns),
        unknown,
        tables[0].cure,
    )


def _require_labels(tables: Sequence[Table], options: Options) -> None:
    """Raises UserError for a file without the column of labels that another file has."""
    wanted = [c.strip().casefold() for c in options.label_columns or (options.label_column,)]
    with_labels, without = list[Table](), list[Table]()
    for table in tables:
        names = {name.strip().casefold() for name in table.columns}
        (with_labels if any(c in names for c in wanted) else without).append(table)
    # Without a common column, the first line of a file may be data.
    alike = without and {*without[0].columns} & {*with_labels[0].columns} if with_labels else ()
    if alike:
        path = without[0].path
        raise UserError(
            f"{path}: has no column {(options.label_columns or [options.label_column])[0]!r}, "
            f"which {with_labels[0].path} has: examples without labels are neither trained on nor "
            f"scored; leave the file out, as in csv:train={with_labels[0].path}, and give it to "
            f"the command predict"
        )


def _joined(tables: Sequence[Table]) -> dict[str, list[str]]:
    """The columns of all tables, one table after another, by their names in the first table."""
    columns = {name: list(texts) for name, texts in tables[0].columns.items()}
    by_plain = {name.casefold(): name for name in columns}
    for table in tables[1:]:
        own = {name if name in columns else by_plain.get(name.casefold(), name): name
               for name in table.columns}  # fmt: skip
        for one, other, names in (
            (table, tables[0], columns.keys() - own.keys()),
            (tables[0], table, own.keys() - columns.keys()),
        ):
            if names:
                hint = (
                    "give both files the same columns"
                    if len(own) > 1 and {*own} & {*columns}
                    else "if the first line of a file is data, name the columns with "
                    "data.csv.header"
                )
                raise UserError(
                    f"{one.path}: has no column {', '.join(map(repr, sorted(names)))}, which "
                    f"{other.path} has; {hint}"
                )
        for name, texts in columns.items():
            texts.extend(table.columns[own[name]])
    return columns


def _targets(
    options: Options, table: Table, columns: Mapping[str, Any], where: str
) -> dict[str, str]:
    """`renamed`, with "" for each of ``data.label_columns``; an error says what may be wrong."""
    try:
        targets = renamed(options, columns, where)
        if "mask" in targets.values() and options.mask_column != Options.mask_column:
            raise UserError(
                f"data.mask_column: {where}: masks are read from tfds and hf, not from a csv file"
            )
        targets = {column: key for column, key in targets.items() if key != "mask"}
        if not options.label_columns:
            return targets
        targets = {column: key for column, key in targets.items() if key != "label"}
        return targets | dict.fromkeys(find_columns(options, columns, where), "")
    except UserError as error:
        found = re.search("has no column '(.*?)'", str(error))
        raise UserError(f"{error}{table.cure(found[1]) if found else ''}") from None


def _with_place(error: UserError, images: Mapping[str, list[str]], place: Place) -> UserError:
    """The error about a file, with the row that names it and what may be wrong with its path."""
    for files in images.values():
        for row, file in enumerate(files):
            if not os.path.lexists(file):
                hint = path_hint(file) or nearby(Path(file))
                hint = hint or "; paths are relative to the folder of the table"
                return UserError(f"{place(row)}: {error}{hint}")
    return error


def _image_name(folder: Path, written: str) -> str:
    """The name of an image without the spaces around it, unless they belong to the name."""
    short = written.strip()
    return written if short == written or (folder / written).exists() else short


def _files(text: str) -> list[tuple[str, Path]]:
    """(split, file) pairs; the split of a single file without ``train=`` is ""."""
    found: list[tuple[str, Path]] = []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and Path(parts[0]).expanduser().is_dir():
        parts = _tables_in(Path(parts[0]).expanduser())
    for part in parts:
        split, equals, file = part.partition("=")
        if not equals:
            split, file = "", part
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"data.source: {path}: no such file")
        if equals and split not in SPLIT_NAMES.values():
            raise UserError(
                f"data.source: unknown split {split!r}.{nearest(split, set(SPLIT_NAMES.values()))}"
            )
        if not split and len(parts) > 1:
            named = _splits_in(path)
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


def _splits_in(path: Path) -> set[str]:
    """The splits that the name of a file has in it."""
    words = re.findall(r"[a-z]+", path.stem.lower())
    return {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}


def _tables_in(folder: Path) -> list[str]:
    """The tables in a folder whose names have a split; or its only table."""
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
    named = [str(path) for path in tables if len(_splits_in(path)) == 1]
    if not named and len(tables) == 1:
        named = [str(tables[0])]
    if not named:
        found = ", ".join(path.name for path in tables[:8]) or "none"
        raise UserError(
            f"data.source: {folder}: expected tables called train.csv, validation.csv or test.csv, "
            f"found the tables: {found}; csv:train=FILE,test=FILE names any files"
        )
    return named


def _split_column(columns: Mapping[str, Sequence[str]]) -> str:
    """The column ``split``, or a column like it that has nothing but names of splits; or ""."""
    if "split" in columns:
        return "split"
    for name, texts in columns.items():
        if name.strip().casefold() in _SPLIT_COLUMNS:
            values = {text.strip().lower() for text in texts}
            splits = {SPLIT_NAMES.get(value) for value in values}
            if None not in splits and (len(splits) > 1 or name.strip().casefold() == "split"):
                return name
    return ""


def _say_split(name: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Says which column splits a table, if its name does not, or that a mark of fastai does not."""
    if column := _split_column(columns):
        if column.strip().casefold() != "split":
            say(f"{name}: split by the column {column!r}")
        return
    for column, texts in columns.items():
        values = {text.strip().lower() for text in texts}
        if column.strip().casefold() in _MARKS and values <= _BOOLEANS and len(values) > 1:
            say(
                f"{name}: the column {column!r} is not read, and the table is split at random; if "
                f"it marks the validation rows, write a column split with train and validation"
            )


def _parts(
    splits: list[str],
    columns: Mapping[str, list[str]],
    labels: list[Any] | None,
    options: Options,
    place: Place,
) -> dict[str, list[int]]:
    """Row numbers by split, each split in a fixed random order."""
    if splits[0] == "" and (column := _split_column(columns)):
        splits = columns[column]
        for row, split in enumerate(splits):
            if split.strip().lower() not in SPLIT_NAMES:
                raise UserError(
                    f"{place(row)}: unknown split {split!r} in the column {column!r}."
                    f"{nearest(split, SPLIT_NAMES)}"
                )
        splits = [SPLIT_NAMES[s.strip().lower()] for s in splits]
    if splits[0] == "":
        strata = (
            label_strata(labels) if labels and options.label_kind != "text" else [0] * len(splits)
        )
        chosen = hold_out(strata, options.split_seed)
        return {split: indices.tolist() for split, indices in chosen.items()}
    parts: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        parts.setdefault(split, []).append(row)
    return {
        split: [rows[i] for i in shuffled(len(rows), options.split_seed)]
        for split, rows in parts.items()
    }
