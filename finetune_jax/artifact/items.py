"""What a user gives to predict: image files, folders, patterns, tables and texts."""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_jax.artifact.folder import Item
from finetune_jax.data.images import SUFFIXES
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.source_folder import files_below
from finetune_jax.data.sources import Options
from finetune_jax.data.table_file import read_table
from finetune_jax.errors import UserError, nearest
from finetune_jax.progress import say
from finetune_jax.tables import shown

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""File name suffixes, in lower case, of the files that are read as tables."""


@dataclasses.dataclass(frozen=True)
class PredictionInput:
    """One input to predict.

    Attributes:
      item: the input, as `Artifact.predict` takes it.
      named: what the input is in a table of predictions: the path of its file, or its text, by
        column. The columns are ``image`` or ``text`` for one input, and the columns of the
        preprocessing for a pair.
    """

    item: Item
    named: dict[str, str]


def prediction_inputs(
    arguments: Sequence[str],
    preprocess: Preprocess,
    options: Options | None = None,
    columns: Sequence[str] = (),
) -> list[PredictionInput]:
    """The inputs that the arguments of a command name, in the order of the arguments.

    For a model of images, an argument is an image file, a folder (all images below it in the order
    of their paths; hidden files and folders are left out, links are followed), a pattern such as
    ``'photos/**/*.png'``, or a table. For a model of texts, an argument is a text or a table. A
    pair is one argument with a tab between its halves, or a row of a table. The argument ``-``
    stands for the lines of standard input (or for its parts between NUL bytes): each is a text, or
    an argument of a model of images.

    Args:
      arguments: the arguments.
      preprocess: preprocessing of the artifact.
      options: how tables are read, as ``config.data`` of a run says it; None for the defaults.
      columns: columns of tables that hold the inputs; empty for ``data.image_column`` of `options`
        or the text columns of the preprocessing. Paths in a table are relative to its folder.

    Raises:
      UserError: a folder, a pattern or a table without inputs, a table without the columns, a name
        of a file that is not UTF-8, or a file where a text is expected.
    """
    reader = _Reader(preprocess, options or Options(), tuple(columns))
    return list(reader.read_all(arguments))


@dataclasses.dataclass(frozen=True)
class _Reader:
    preprocess: Preprocess
    options: Options
    columns: tuple[str, ...]

    def read_all(self, arguments: Sequence[str]) -> Iterator[PredictionInput]:
        for argument in arguments:
            if argument != "-":
                yield from self.read(argument)
                continue
            lines = _lines_of_standard_input()
            if not lines:
                raise UserError("-: standard input has no lines")
            for line in lines:
                # A line is never the name of a table for a model of texts.
                yield from [self._text(line)] if self.texts else self._images(line)

    @property
    def texts(self) -> bool:
        return self.preprocess.kind == "text"

    def _text(self, text: str) -> PredictionInput:
        example = self.preprocess.read(text)
        return self._of([example[column] for column in self.preprocess.columns])

    def read(self, argument: str) -> Iterator[PredictionInput]:
        if self.preprocess.kind == "text":
            return self._texts(argument)
        return self._images(argument)

    def _texts(self, argument: str) -> Iterator[PredictionInput]:
        columns = self.preprocess.columns
        if argument.lower().endswith(TABLES):
            paths = [argument] if os.path.isfile(argument) else _matches(argument)
            if not paths:
                raise UserError(f"{argument}: no such table; put a text of this kind into a table")
            for path in paths:
                yield from self._table(path)
        elif os.path.lexists(argument):
            raise UserError(
                f"{argument}: this is a file or a folder, and the model reads texts; expected a "
                f"text, or a table ({', '.join(TABLES)}) with the columns {', '.join(columns)}"
            )
        else:
            yield self._text(argument)

    def _images(self, argument: str, pattern: bool = True) -> Iterator[PredictionInput]:
        pair = len(self.preprocess.columns) == 2
        if argument.lower().endswith((".txt", ".lst")) and os.path.isfile(argument):
            raise UserError(
                f"{argument}: a file of text; where each line is the path of an image, give its "
                f"lines as standard input: predict … - < {shlex.quote(argument)}"
            )
        if os.path.isfile(argument) and argument.lower().endswith(TABLES):
            yield from self._table(argument)
        elif pair:
            parts = argument.split("\t")
            if len(parts) != 2:
                raise UserError(
                    f"{argument!r}: expected 2 image files separated by a tab, or a table "
                    f"({', '.join(TABLES)}) with a row for each pair"
                )
            yield self._of(parts)
        elif os.path.isdir(argument):
            yield from (self._of([path]) for path in _images_below(argument))
        elif os.path.exists(argument) or not (pattern and glob.has_magic(argument)):
            yield self._of([argument])
        else:
            paths = _matches(argument)
            if not paths:
                raise UserError(f"{argument}: no file has a name of this pattern")
            for path in paths:
                yield from self._images(path, pattern=False)

    def _table(self, path: str) -> Iterator[PredictionInput]:
        table = read_table(Path(path), self.options).columns
        texts = self.preprocess.kind == "text"
        wanted = self.columns or (self.preprocess.columns if texts else self._image_columns(table))
        if len(wanted) != len(self.preprocess.columns):
            raise UserError(
                f"--columns: the model reads {' and '.join(self.preprocess.columns)}, which are "
                f"{len(self.preprocess.columns)} columns of {path}; found {', '.join(wanted)}"
            )
        for column in wanted:
            if column not in table:
                raise UserError(
                    f"{path}: no column {column!r}.{nearest(column, table)} --columns names the "
                    f"columns of the {'texts' if texts else 'images'}"
                )
        folder = os.path.dirname(path)
        for values in zip(*(table[column] for column in wanted), strict=True):
            yield self._of(values if texts else [os.path.join(folder, x) for x in values])

    def _image_columns(self, table: dict[str, list[str]]) -> tuple[str, ...]:
        """The columns of ``data.image_column``; without a setting, those of the preprocessing."""
        wanted = self.options.image_column
        if wanted in table:  # the name of a single column may have a comma
            return (wanted,)
        if wanted == Options.image_column:
            return self.preprocess.columns
        return tuple(name.strip() for name in wanted.split(","))

    def _of(self, values: Sequence[str]) -> PredictionInput:
        """An input from its paths or its texts, one for each column of the preprocessing."""
        columns = self.preprocess.columns
        names = columns if len(columns) > 1 else (self.preprocess.kind,)
        named = dict(zip(names, values, strict=True))
        if self.preprocess.kind == "text":
            return PredictionInput(dict(zip(columns, values, strict=True)), named)
        return PredictionInput("\t".join(values), named)


def _lines_of_standard_input() -> list[str]:
    """The lines that are not empty, or the parts between NUL bytes as ``find -print0`` has them."""
    content = sys.stdin.buffer.read()
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    try:
        return [text for part in parts if (text := part.decode("utf-8-sig")).strip()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"-: expected lines of text in UTF-8, each a text or the path of an image, found "
            f"{error.object!r:.80}; the content of an image is read from its file alone"
        ) from None


def _matches(pattern: str) -> list[str]:
    """The paths of a pattern, sorted; hidden files only if the pattern names them."""
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    return sorted(map(_require_utf8, found))


def _images_below(folder: str) -> list[str]:
    """The image files below a folder in the order of their paths; reports how many others exist."""
    files = sorted(map(_require_utf8, map(str, files_below(Path(folder)))))
    images = [file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES]
    others = sorted({os.path.splitext(file)[1].lower() for file in files} - SUFFIXES)
    kinds = ", ".join(suffix or "without a suffix" for suffix in others[:8])
    if not images:
        raise UserError(
            f"{folder}: the folder holds no image ({', '.join(sorted(SUFFIXES))})"
            + (f"; files of other kinds: {kinds}" if others else "; it holds no files")
        )
    if others:
        say(shown(f"{folder}: {len(files) - len(images)} files are not images by name: {kinds}"))
    return images


def _require_utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{ascii(path)}: the name of this file is not UTF-8; rename it") from None
    return path
