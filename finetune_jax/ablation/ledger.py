"""``results.jsonl``: one line for every arm that has trained and every score of a chosen one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.files import plain

Record = dict[str, Any]


class Ledger:
    """An append-only file of JSON lines, each named by ``key`` and ``what``; one process writes it.

    Args:
      path: of the file; made on the first line. A last line that a crash cut short is removed.

    Raises:
      UserError: a line before the last is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], Record] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[record["key"], record["what"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a record of an arm: {error}") from None
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, record: Record) -> None:
        """Writes a record through to the disk; one whose key and what are known is left out."""
        name = (record["key"], record["what"])
        if name in self._records:
            return
        record = plain(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[name] = record

    def get(self, key: str, what: str) -> Record | None:
        """The record of an arm: ``trained``, or ``scored`` and the name of what was asked."""
        return self._records.get((key, what))

    def __len__(self) -> int:
        return len(self._records)
