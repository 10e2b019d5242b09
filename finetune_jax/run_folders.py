"""Which folder of a run a user may have meant by another path."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from finetune_jax.errors import UserError

_CONFIG, _CARD = "config.json", Path("artifact", "artifact.json")


def no_run(path: Path) -> str:
    """The end of a message about a path that is no run: the run around it, or the runs below it."""
    for around in [*path.absolute().parents][:2]:
        if (around / _CONFIG).is_file() and (around / "plan.json").is_file():
            return f"; the run of this path is {around}"
    if path.is_file():
        archive = path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".7z")
        what = "an archive: unpack it, and give the folder" if archive else "a file"
        return f"; {path.name} is {what}"
    if not path.is_dir():
        return ""
    if (path / "results.jsonl").is_file():
        return f"; it is the folder of an ablation, whose runs are the folders in {path / 'runs'}"
    below = [p for p in sorted(path.iterdir()) if (p / _CARD).is_file() and (p / _CONFIG).is_file()]
    if not below:
        return "" if (path / _CONFIG).is_file() else "; expected the folder of a run"
    shown = ", ".join(p.name for p in below[:6]) + (", …" if len(below) > 6 else "")
    return f"; this folder holds {len(below)} runs: name one of them: {shown}"


def require_run(path: Path) -> None:
    """Raises UserError for a path that is no folder of a run; the message says which may be."""
    if not (path / _CONFIG).is_file():
        what = f"no run here ({_CONFIG} is missing)" if path.is_dir() else "no folder of a run"
        raise UserError(f"{path}: {what}{no_run(path)}")


def named_runs(texts: Iterable[str]) -> list[Path]:
    """The folders that paths and patterns such as ``runs/soup_*`` name; a shell expands no flags.

    Raises:
      UserError: a pattern that no folder matches.
    """
    found: list[Path] = []
    for text in texts:
        if Path(text).exists() or not glob.has_magic(text):
            found.append(Path(text))
            continue
        folders = [path for path in map(Path, sorted(glob.glob(text))) if path.is_dir()]
        if not folders:
            raise UserError(f"{text}: no folder matches this pattern")
        found += folders
    return found
