"""Checks that the files of a run or of an ablation are whole.

  python -m finetune_jax.verify --workdir=runs/mine
  python -m finetune_jax.verify --workdir=runs/ablation --prefix_cache=cache --json

Every leaf of every checkpoint, the artifact, predictions, the ledger of an ablation and all arms
are compared with their checksums; neither the data nor the weight file is needed. Prints one line
per object. The status is 1 if an object is damaged. Nothing is changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError

if TYPE_CHECKING:
    from finetune_jax.verification import Finding

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of a run, of an average or of an ablation.")
_PREFIX_CACHE = flags.DEFINE_string("prefix_cache", "", "Folder of prefix_cache.dir.")
_PUBLIC_KEY = flags.DEFINE_string(
    "public_key", "", "PEM file of the signer: the signature is checked too."
)
_KEY_FILE, _PASSPHRASE_FILE = cli.define_key()
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of lines.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    if not (_WORKDIR.value or _PREFIX_CACHE.value):
        raise UserError("expected --workdir=DIR or --prefix_cache=DIR")
    from finetune_jax.sealing import folder_at
    from finetune_jax.verification import (
        DAMAGED,
        verify,
        verify_prefix_cache,
        verify_signature,
    )

    findings = []

    def show(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if not _JSON.value:
                reason = f": {finding.reason}" if finding.reason else ""
                print(f"{finding.state:8} {finding.path}{reason}", flush=True)

    if _WORKDIR.value:
        keys = (_KEY_FILE.value, _PASSPHRASE_FILE.value)
        with folder_at(Path(_WORKDIR.value), *keys) as folder:
            show(verify(folder))
            if _PUBLIC_KEY.value:
                show([verify_signature(folder, Path(_PUBLIC_KEY.value))])
    if _PREFIX_CACHE.value:
        show(verify_prefix_cache(Path(_PREFIX_CACHE.value)))
    damaged = sum(finding.state == DAMAGED for finding in findings)
    if _JSON.value:
        objects = [{"path": str(f.path), "state": f.state, "reason": f.reason} for f in findings]
        print(json.dumps({"damaged": damaged, "objects": objects}, indent=1))
    else:
        print(f"{damaged} of {len(findings)} objects damaged")
    if damaged:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
