"""``results.jsonl``: one line for every arm that has trained and for every score of an arm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.files import plain

Record = dict[str, Any]
"""Content of a line; ``key`` is the key of the arm, ``what`` the kind of the record: ``trained``,
or ``scored`` followed by the hash of the score specification."""


class Ledger:
    """An append-only file of records, identified by ``key`` and ``what``; only one process writes.

    An incomplete last line, which a crash can leave, is removed from the file.

    Args:
      path: path of the file, which is created by the first record.

    Raises:
      UserError: a complete line is not a record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], Record] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[record["key"], record["what"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a record of an arm: {error}") from None
        if complete != content:
            with path.open("r+b") as file:
                file.truncate(len(complete))

    def append(self, record: Record) -> None:
        """Writes a record to the disk, unless the file has a record with this key and kind."""
        name = (record["key"], record["what"])
        if name in self._records:
            return
        record = plain(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
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

    def __len__(self) -> int:
        return len(self._records)
