"""Compares the inputs of arms (data, tokenizer, weights, teacher) with those of their records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from finetune_jax.ablation import worker
from finetune_jax.ablation.arm import Arm
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.ablation.records import ACCEPTED, TRAINED, accepted_key, accepted_record
from finetune_jax.identity import (
    PARTS,
    MadeOf,
    digests,
    require_same_parts,
    version_differences,
    versions,
)
from finetune_jax.progress import say


class RecordedArms:
    """The arms of a ledger.

    Args:
      ledger: the ledger.
      workdir: folder of the ablation.
      accept: whether the user accepts records of other data, tokenizers, weights or teachers.
    """

    def __init__(self, ledger: Ledger, workdir: Path, *, accept: bool) -> None:
        self._ledger, self._workdir, self._accept = ledger, workdir, accept

    def arm(self, arm: Arm, made_of: MadeOf) -> Arm:
        """An arm with the digests of its inputs; a recorded arm keeps the key of its record.

        Args:
          arm: arm of a config.
          made_of: what the arm is made of now.

        Raises:
          UserError: the record of the arm was made from other inputs, and the user does not
          accept that.
        """
        arm = dataclasses.replace(arm, made_of=digests(made_of))
        if self._ledger.find(arm.key, TRAINED) is not None:
            return arm
        earlier = [
            record
            for record in self._ledger
            if record["what"] == TRAINED
            and (record.get("config"), record["row"]) == (arm.config_hash, arm.row)
        ]
        if not earlier:
            return arm
        record = earlier[-1]
        old = {part: record["made_of"].get(part, "") for part in PARTS}
        if self._ledger.find(accepted_key(old, arm.made_of), ACCEPTED) is None:
            known = worker.read_result(self._workdir / "runs" / record["key"]) or {}
            before, now = old, dict(arm.made_of)
            if digests(known.get("made_of", {})) == old:  # the record then says more than digests
                before, now = known["made_of"], made_of
            what = f"--workdir={self._workdir}: the arm {arm.row!r} with seed {arm.seed}"
            changes = require_same_parts(before, now, what, accept=self._accept)
            self._ledger.append(accepted_record(old, arm.made_of, changes))
            say(f"accepted: {'; '.join(changes)}")
        return dataclasses.replace(arm, known_as=record["key"])

    def require_expected(self, arm: Arm, made_of: MadeOf, result: dict[str, Any]) -> None:
        """Checks that an arm was trained on what was there when this call started.

        Args:
          arm: an arm that has ended.
          made_of: what was there when this call started.
          result: see `worker.read_result`.

        Raises:
          UserError: the arm was trained on other inputs, and the user does not accept that.
        """
        if "made_of" in result:
            what = f"{self._workdir / 'runs' / arm.key}: the arm {arm.row!r} with seed {arm.seed}"
            require_same_parts(result["made_of"], made_of, what, accept=self._accept)

    def changes(self) -> list[str]:
        """The changes that the user accepted in all calls, as lines."""
        records = [record for record in self._ledger if record["what"] == ACCEPTED]
        return list(dict.fromkeys(line for record in records for line in record["changes"]))

    def say_versions(self) -> None:
        """Says with which other versions arms were trained or scored."""
        found = Counter(
            ", ".join(version_differences(record["made_of"], {"versions": versions()}))
            for record in self._ledger
            if "made_of" in record
        )
        for text, count in found.items():
            if text:
                say(f"{count} records of this ablation are of other versions than now: {text}")
