"""The folder of a run, which belongs to one config."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shlex
from pathlib import Path
from typing import Any

from finetune_jax import config as config_lib
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL, digest, read_json, require_seal, write_json
from finetune_jax.hosts import all_agree, is_primary, on_primary, wait
from finetune_jax.known import CONFIGS, remember
from finetune_jax.locks import FolderLock
from finetune_jax.portable import portable
from finetune_jax.training.extending import is_length_alone


def lock_workdir(workdir: Path) -> contextlib.AbstractContextManager[FolderLock | None]:
    """Locks a run's folder, which is created if it does not exist; the primary holds the lock.

    Raises:
      UserError: another process owns the folder, the folder cannot be written, or checkpoints
        cannot be kept below its path.
    """
    require_plain(workdir)
    lock = on_primary(lambda: FolderLock(workdir, f"--workdir={workdir}"))
    return lock or contextlib.nullcontext()


def require_plain(workdir: Path) -> None:
    """Raises UserError for a path that, read as a pattern, does not match itself, as ``run [1]``.

    Orbax joins the parts of a checkpoint by such a pattern, and leaves them out without an error.
    """
    for part in workdir.absolute().parts:
        if not fnmatch.fnmatchcase(part, part):
            raise UserError(
                f"--workdir={workdir}: checkpoints cannot be kept below a folder called {part!r}, "
                f"because their library reads the brackets as a pattern; use a path without [ and ]"
            )


def require_apart(workdir: Path, source: str) -> None:
    """Raises UserError for a folder of runs in a folder of data, where it would be a class."""
    kind, _, rest = source.partition(":")
    root = Path(rest).expanduser().resolve()
    if kind == "folder" and rest and root in (workdir.resolve(), *workdir.resolve().parents):
        raise UserError(
            f"--workdir={workdir} lies in the folder of the data, {rest}, whose folders are read "
            f"as classes or splits; expected a folder outside of it, such as runs/{root.name}"
        )


def open_workdir(workdir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Checks that a run's folder, which `lock_workdir` has created, holds this config or no config.

    Args:
      workdir: run folder.
      config: resolved config, as JSON.

    Returns:
      The config of the folder, as JSON, if it differs in the length of the run alone, which
      `extending.changed_length` checks further; else None.

    Raises:
      UserError: the folder is not writable, is not shared by all processes, or belongs to another
        config; then the message shows the difference.
    """
    try:
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
    for name, kind in (("average.json", "an average"), ("results.jsonl", "an ablation")):
        if (workdir / name).exists():
            raise UserError(f"--workdir={workdir} is the folder of {kind}; use another")
    path = workdir / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged; remove it or use another --workdir") from None
        lines = differences(old, config)
        if is_length_alone(lines):
            return portable(config_lib.completed(old))
        if lines:
            raise UserError(
                f"--workdir={workdir} belongs to a run of another config, which is left as it is:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nuse another --workdir, or the config of that run to continue it"
                + _moved(old, config)
            )
    return None


def _moved(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The end of a message about another config: what to do where files have moved; else ""."""
    for section, key in (("data", "source"), ("pretrained", "path"), ("data", "tokenizer")):
        before, after = (str((c.get(section) or {}).get(key) or "") for c in (old, new))
        one, other = (text.rpartition(":")[2] for text in (before, after))
        if before != after and one and Path(other).expanduser().exists():
            return (
                f"; if {other} holds the files that were in {one}, a link there continues the run: "
                f"ln -s {shlex.quote(str(Path(other).absolute()))} {shlex.quote(one)}"
            )
    return ""


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines about the keys in which the config of a run, as JSON, is another one.

    A config stays the same if its home, package or data folder was moved: the identity of the files
    is compared apart. What a run logs changes none of its weights, and a default of an older
    version is no other config.
    """
    lines = config_lib.difference(portable(config_lib.completed(old)), portable(new))
    return [line for line in lines if not line.startswith("log.")]


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config into an opened folder, which then belongs to this config.

    The config then counts as trusted for this user; see `finetune_jax.evaluation.trust`.
    """
    write_json(workdir / "config.json", config)
    remember(CONFIGS, digest(config))


def finished_result(workdir: Path) -> dict[str, Any] | None:
    """Returns the figures of the finished run in a folder; None if no run has finished there.

    Raises:
      UserError: ``result.json`` was changed or is damaged. Earlier versions wrote no checksum.
    """
    names = ("config.json", "artifact/artifact.json", "result.json")
    if not all((workdir / name).is_file() for name in names):
        return None
    path = workdir / "result.json"
    content = read_json(path)
    if SEAL not in content and "made_of" not in content:
        return content
    return require_seal(content, f"{path} (without it, the run is scored again)")
