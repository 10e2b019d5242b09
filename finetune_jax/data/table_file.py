"""Reads a table in a text file: its encoding, its separator, and its rows with their lines.

Compressed files (gzip, bzip2, xz) are unpacked. A byte order mark gives the encoding. Where
``data.csv.sep`` is empty and the first line has no separator of the usual kind, another separator
that the first lines have in common is used, and a line reports this. A file that is no table is
refused with a message that names its format.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import dataclasses
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError
from finetune_jax.progress import say

# By text of ``data.csv.sep``.
_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "space": " "}
# Separators of other programs, and what a message calls them.
_OTHERS = {",": "comma", "\t": "tab", ";": ";", "|": "|"}
_COMPRESSED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# First bytes of files that are no tables, what they are, and what to do.
_NO_TABLES = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive", "save it as CSV, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as CSV"),
    (b"PAR1", "a Parquet file", "write it as CSV, for instance with pandas"),
    (b"ARROW1", "an Arrow file", "write it as CSV, for instance with pandas"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it, or compress it with gzip"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF", "export the table as CSV"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "run 'git lfs pull'"),
    (b"<!doctype html", "a web page", "download the table again"),
    (b"<html", "a web page", "download the table again"),
)
_COMPARED_ROWS = 20
# By whether the first line has the names of the columns.
_REPEATED = {
    True: "the first line, which has the names of the columns, is repeated; remove this line, or, "
    "if the first line is data, name the columns with data.csv.header",
    False: "these are the names in data.csv.header; leave data.csv.header empty for a file whose "
    "first line has the names of its columns",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
      path: the file.
      columns: texts of all rows by name of the column.
      lines: number of the line on which each row begins, from 1.
      first: fields of the first line, before its names are cleaned.
      separator: the text between two fields.
      named: whether the first line has the names of the columns, and not ``data.csv.header``.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    first: tuple[str, ...]
    separator: str
    named: bool

    def place(self, row: int) -> str:
        """File and line of a row, for a message."""
        return f"{self.path}, line {self.lines[row]}"

    def cure(self, wanted: str) -> str:
        """What may be wrong if this table has no column `wanted`: a sentence for a message."""
        first = self.separator.join(self.first)
        for other, name in _OTHERS.items():
            fields = [field.strip().strip('"') for field in first.split(other)]
            if other != self.separator and wanted in fields and len(fields) > 1:
                return f" The fields of its first line are separated by {name!r}: set data.csv.sep."
        if not self.named:
            return " data.csv.header names the columns."
        return (
            f" Its columns are {', '.join(map(repr, list(self.columns)[:12]))}, from its first "
            f"line; if that line is data, name the columns with data.csv.header."
        )


def read_table(path: Path, options: Options) -> Table:
    """Reads a file.

    Raises:
      UserError: the file is not readable or no table; another encoding; a row with another number
        of fields; two columns of one name. A message about a row names the line.
    """
    text = _text(path, options.encoding)
    separator, skipped = _separator(path, text, options)
    # Texts may be longer than the module's default limit of 128 KiB.
    csv.field_size_limit(2**30)
    header, first = list(options.header), tuple[str, ...]()
    columns, lines, blank = list[list[str]](), list[int](), 0
    for line, row in itertools.islice(_rows(path, text, separator, options), skipped, None):
        if not columns:
            first = tuple(row)
            header = header or _names(row)
            _require_different(path, header)
            columns = [[] for _ in header]
            if not options.header:
                continue
        if len(header) > 1 and not any(map(str.strip, row)):
            blank += 1
            continue
        if len(row) != len(header):
            row = _fit(row, header, separator, options, f"{path}, line {line}")
        if row[0] == header[0] and row == header and len(row) > 1:
            raise UserError(f"{path}, line {line}: {_REPEATED[not options.header]}")
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        lines.append(line)
    if not lines:
        raise UserError(f"{path}: no rows" + (" after its first line" if columns else ""))
    if blank:
        say(f"{path}: {blank} rows without any text are left out")
    named = dict(zip(header, columns, strict=True))
    return Table(path, named, lines, first, separator, not options.header)


def _text(path: Path, encoding: str) -> str:
    """The text of a file, without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for start, (kind, unpack) in _COMPRESSED.items():
        if content.startswith(start):
            try:
                content = unpack(content)
            except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
                raise UserError(f"{path}: not a whole {kind} file: {error}") from None
    for start, what, cure in _NO_TABLES:
        if content[:64].lstrip().lower().startswith(start.lower()):
            raise UserError(f"{path}: expected a table in a text file, found {what}; {cure}")
    if content.startswith((b'{"', b"[{", b"{\n", b"[\n")):
        raise UserError(
            f"{path}: expected a table in a text file, found JSON; write it as CSV, for instance "
            f"with pandas"
        )
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig"):
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), encoding)
        _refuse_zeros(path, content, encoding)
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
        return text.replace("\n\ufeff", "\n")  # files joined by `cat` have marks in the middle
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not {encoding} at byte {error.start}, in line {line}; set data.csv.encoding, "
            f"for instance to 'cp1252' (Windows), 'latin-1', 'gb18030' or 'shift_jis'"
        ) from None
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"data.csv.encoding: {error}") from None


def _refuse_zeros(path: Path, content: bytes, encoding: str) -> None:
    """Raises UserError for UTF-16 without a byte order mark, and for other files with zeros."""
    start = content[:1000]
    if encoding in ("utf-16", "utf-32") or b"\x00" not in start:
        return
    odd, even = start[1::2].count(0), start[::2].count(0)
    if max(odd, even) > len(start) // 5 and min(odd, even) < max(odd, even) // 4:
        name = "utf-16-le" if odd > even else "utf-16-be"
        raise UserError(
            f"{path}: not {encoding}; every second byte is 0: set data.csv.encoding to {name!r}"
        )
    try:
        start.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # a character may be cut at the end
            raise UserError(
                f"{path}: expected a table in a text file; byte {start.index(0)} is 0 and byte "
                f"{error.start} is not {encoding}, so this is a binary file"
            ) from None


def _separator(path: Path, text: str, options: Options) -> tuple[str, int]:
    """The text between two fields, and the number of lines before the table, 0 or 1."""
    start = text[:16].splitlines()[:1]
    if start and start[0].strip('"').startswith("sep=") and len(start[0].strip('"')) == 5:
        # Excel writes a first line such as "sep=;".
        return _SEPARATORS.get(options.sep, options.sep) or start[0].strip('"')[4], 1
    if options.sep:
        return _SEPARATORS.get(options.sep, options.sep), 0
    compressed = path.suffix.lower() in (".gz", ".bz2", ".xz")
    suffix = (path.with_suffix("") if compressed else path).suffix.lower()
    usual = "\t" if suffix in (".tsv", ".tab") else ","
    count, widths = len(options.header), _widths(path, text, usual, options)
    ragged = len({*widths}) > 1 and options.extra == "error"
    if count == 1 or not (widths[:1] == [1] or ragged):
        return usual, 0
    found = []
    for other in _OTHERS if not text.startswith("|") else ():  # a table of Markdown
        widths = _widths(path, text, other, options) if other != usual else [1]
        if widths[0] > 1 and len({*widths}) == 1 and (not count or widths[0] == count):
            found.append(other)
    if len(found) != 1:
        return usual, 0
    say(f"{path}: its fields are separated by {_OTHERS[found[0]]!r}, see data.csv.sep")
    return found[0], 0


def _widths(path: Path, text: str, separator: str, options: Options) -> list[int]:
    """Number of fields of the first rows; [1] for a table that cannot be read like this."""
    try:
        rows = itertools.islice(_rows(path, text, separator, options), _COMPARED_ROWS)
        return [len(row) for _, row in rows]
    except UserError:
        return [1]


def _rows(
    path: Path, text: str, separator: str, options: Options
) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row that is not empty."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if options.quoting else csv.QUOTE_NONE
    file = io.StringIO(text, newline="")
    names = next(csv.reader([file.readline().rstrip("\r\n")], delimiter=separator), [])
    file.seek(0)
    reader = csv.reader(
        file,
        delimiter=separator,
        quoting=quoting,
        strict=options.quoting,
        # "text, label" is written with a space after each separator, also before a quote.
        skipinitialspace=not options.header and any(name[:1] == " " for name in names[1:]),
    )
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            escaped = ' write quotes inside of a field twice, as in "a ""b"" c";'
            raise UserError(
                f"{path}, line {line}: {error};{escaped if options.quoting else ''} if quotes do "
                f"not enclose fields in this file, set data.csv.quoting to False"
            ) from None
        if row:
            yield line, row


def _names(row: Sequence[str]) -> list[str]:
    """The names of the columns from the first line, without spaces around them."""
    names = [name.strip() for name in row]
    if len({*names}) < len({*row}):
        names = list(row)
    # Empty columns of a spreadsheet have empty names.
    while names and not names[-1] and names.count("") > 1:
        names.pop()
    if names.count("") > 1:
        names = [name or f"column {number}" for number, name in enumerate(names, 1)]
    return names


def _require_different(path: Path, names: Sequence[str]) -> None:
    """Raises UserError for two columns of one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        places = " and ".join(str(i) for i, name in enumerate(names, 1) if name == twice[0])
        raise UserError(
            f"{path}: more than one column is called {', '.join(map(repr, twice))} (columns "
            f"{places}); give each column a name of its own in the first line, or in "
            f"data.csv.header"
        )


def _fit(
    row: list[str], header: Sequence[str], separator: str, options: Options, where: str
) -> list[str]:
    """The row with a field for each name; ``data.csv.extra`` decides about additional fields."""
    count = len(header)
    if options.extra == "error":
        while len(row) > count and not row[-1].strip():
            row = row[:-1]
    if len(row) > count and options.extra == "drop":
        return row[:count]
    if len(row) > count and options.extra == "join":
        return [*row[: count - 1], separator.join(row[count - 1 :])]
    if len(row) > count == 1 and not options.header:
        for other, name in _OTHERS.items():
            if other != separator and len(header[0].split(other)) == len(row):
                raise UserError(
                    f"{where}: the fields of the first line are separated by {name!r}, and those "
                    f"of this line by {_OTHERS.get(separator, separator)!r}; write one separator "
                    f"in all lines"
                )
        raise UserError(
            f"{where}: expected 1 field, as in the first line, found {len(row)}; the first line "
            f"has the names of the columns: remove a title or comment above them"
        )
    if len(row) > count:
        raise UserError(
            f"{where}: expected {count} fields, found {len(row)}; enclose a text that has a "
            f"{separator!r} in it in quotes; data.csv.extra can 'drop' or 'join' additional fields"
        )
    if len(row) < count:
        raise UserError(
            f"{where}: expected {count} fields, found {len(row)}; write empty fields too, and "
            f"enclose a text that has a line break in it in quotes"
        )
    return row
