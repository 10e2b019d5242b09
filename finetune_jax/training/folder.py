"""The folder of a run: made, or continued by the same config only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_jax import config as config_lib
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.hosts import all_agree, is_primary, wait


def open_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Creates a run's folder, or accepts one that holds the same config or none.

    Raises:
      UserError: not writable, or the folder of another config (with the difference).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe_file = workdir / ".writable"
        if is_primary():
            probe_file.write_text("")
        wait("workdir")
        shared = all_agree(probe_file.is_file())
        if is_primary():
            probe_file.unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot write there: {error.strerror}") from None
    if not shared:
        raise UserError(f"--workdir={workdir}: not the same folder for all processes")
    path = workdir / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged; remove it or use another --workdir") from None
        lines = config_lib.difference(old, config)
        if lines:
            raise UserError(
                f"--workdir={workdir} belongs to a run of another config, which is left as it is:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nuse another --workdir, or the config of that run to continue it"
            )


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Makes an opened folder that of a config, for good."""
    write_json(workdir / "config.json", config)


def finished_result(workdir: Path) -> dict[str, Any] | None:
    """The figures of a run that ended in an opened folder; None if there is none."""
    ends = ("config.json", "artifact/artifact.json", "result.json")
    if not all((workdir / name).is_file() for name in ends):
        return None
    return read_json(workdir / "result.json")
