"""``results.jsonl``: one line for every arm that has trained and for every score of an arm.

Every line carries a checksum of its record, so that no edited or damaged number is believed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from finetune_jax.ablation.records import Record, check_record
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL, parse_json, plain, require_seal, seal
from finetune_jax.progress import say


class Ledger:
    """An append-only file of records, identified by ``key`` and ``what``; only one process writes.

    An incomplete last line, which a crash can leave, is removed from the file. If only its end is
    missing, the line is completed.

    Args:
      path: path of the file, which is created by the first record.

    Raises:
      UserError: the file cannot be read, or a line is not a record as it was written; the message
        has the number of the line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], Record] = {}
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except IsADirectoryError:
            raise UserError(
                f"{path}: expected a file of records, found a folder; remove it, and the arms run "
                f"again"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        *lines, rest = content.split(b"\n")
        first_line: dict[tuple[str, str], int] = {}
        unsealed = 0
        for number, line in enumerate(lines, 1):
            try:
                record, sealed = _parse(line)
                name = (record["key"], record["what"])
                if self._records.setdefault(name, record) != record:
                    raise UserError(f"another record of what line {first_line[name]} has")
            except UserError as error:
                raise UserError(
                    f"{path}, line {number}: not a record as it was written: {error}. Remove line "
                    f"{number}; if its arm is missing then, the arm runs again"
                ) from None
            first_line.setdefault(name, number)
            unsealed += not sealed
        if rest:
            self._repair(content, rest)
        if unsealed:
            say(f"{path}: {unsealed} records of an earlier version have no checksum")

    def _repair(self, content: bytes, rest: bytes) -> None:
        """Completes or removes the last line of the file, which has no newline at its end."""
        try:
            record, sealed = _parse(rest)
        except UserError:
            sealed = False
        try:
            with self._path.open("r+b") as file:
                # Without a checksum, it is unknown whether the line is complete.
                if sealed and self.find(record["key"], record["what"]) in (None, record):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                    self._records[record["key"], record["what"]] = record
                else:
                    file.truncate(len(content) - len(rest))
                    say(f"{self._path}: the last line was incomplete and is removed")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None

    def append(self, record: Record) -> None:
        """Writes a record to the disk, unless the file has a record with this key and kind."""
        name = (record["key"], record["what"])
        if name in self._records:
            return
        record = check_record(plain(record), sealed=True)
        with self._path.open("a") as file:
            file.write(json.dumps(seal(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[name] = record

    def find(self, key: str, what: str) -> Record | None:
        """The record of an arm, or None if there is none; for the arguments see `Record`."""
        return self._records.get((key, what))

    def get(self, key: str, what: str) -> Record:
        """The record of an arm; for the arguments see `Record`.

        Raises:
          KeyError: there is no such record.
        """
        record = self.find(key, what)
        if record is None:
            raise KeyError(f"{self._path}: no record {what!r} of the arm {key}")
        return record

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)


def _parse(line: bytes) -> tuple[Record, bool]:
    """Returns (record, whether it has a checksum).

    Raises:
      UserError: the line is not a record, or the record does not have its own checksum.
    """
    if not line.strip():
        raise UserError("the line is empty")
    if b"\0" in line:
        raise UserError("the line has zero bytes, as after a loss of power")
    try:
        content = parse_json(line.decode())
    except UnicodeDecodeError:
        raise UserError("the line is no text") from None
    sealed = isinstance(content, dict) and SEAL in content
    if sealed:
        content = require_seal(content, "its checksum")
    return check_record(content, sealed=sealed), sealed
