"""Campaign: two commands write into one folder, the second some moments after the first.

  python -m experiments.faults.pairs --write

The folder must end as one of the commands alone leaves it. The other command must end with one
message, or report that the first command has finished the work.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faults.campaign import HANG, IDENTICAL, TRACEBACK, WRONG, Trial, main
from finetune_jax.files import read_json

_CONFIG = """
from experiments.faults.full_disk import writing_config
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study

def get_config():
    config = writing_config()
    config.train.steps = 30
    config.checkpoint.every_steps = 5
    return config

def get_study():
    return Study(rows=over("scheme", ["linear_probe", "full"]), search="grid(extend=0)",
                 tune=over("optimizer.learning_rate", [0.01]), seeds=(0,))
"""
_PAIRS = (("train", "train"), ("train", "other"), ("ablate", "ablate"), ("train", "average"))
_SECONDS = 300


def make_trial(folder: Path, pairs: tuple[tuple[str, str], ...] = _PAIRS) -> Trial:
    """Runs each command alone.

    Args:
      folder: empty folder for all runs.
      pairs: pairs of names of commands that are tried.

    Returns:
      The function of a trial.
    """
    config = folder / "config.py"
    config.write_text(_CONFIG)
    members = f"--members={folder / 'train'},{folder / 'other'}"
    commands = {
        "train": (["train", f"--config={config}"], "--workdir"),
        "other": (["train", f"--config={config}", "--config.seed=1"], "--workdir"),
        "average": (["average", members, "--method=uniform"], "--output"),
        "ablate": (["ablate", f"--config={config}"], "--workdir"),
    }
    needed = {name for pair in pairs for name in pair}
    needed |= {"other"} if "average" in needed else set()
    ends = {}
    for name in (name for name in commands if name in needed):
        process = _start(commands[name], folder / name)
        told = process.communicate(timeout=_SECONDS)[1]
        assert process.returncode == 0, told
        ends[name] = _end(folder / name)

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        pair = pairs[int(rng.integers(len(pairs)))]
        if rng.random() < 0.5:
            pair = pair[::-1]
        offset = float(rng.uniform(0, 2))
        processes = [_start(commands[pair[0]], workdir)]
        time.sleep(offset)
        processes.append(_start(commands[pair[1]], workdir))
        what = f"{pair[0]} and {pair[1]} after {offset:.2f} s"
        try:
            told = [process.communicate(timeout=_SECONDS)[1] for process in processes]
        except subprocess.TimeoutExpired:
            return HANG, what
        finally:
            for process in processes:
                process.kill()
        statuses = [process.returncode for process in processes]
        what += f": statuses {statuses}"
        for status, text in zip(statuses, told, strict=True):
            if "Traceback" in text or status not in (0, 2) or (status == 2 and not _is_told(text)):
                return TRACEBACK, f"{what}: {text[-2000:]}"
        allowed = [ends[name] for name, s in zip(pair, statuses, strict=True) if s == 0]
        found = _end(workdir)
        if found in allowed:
            return IDENTICAL, what
        differ = [{k for k in found | end if found.get(k) != end.get(k)} for end in allowed]
        return WRONG, f"{what}; differs in {differ}, has {found['names']}"

    return trial


def _is_told(text: str) -> bool:
    """Whether the text of a command that was refused ends with its message."""
    return text.strip().splitlines()[-1].startswith("error: ")


def _start(command: tuple[list[str], str], workdir: Path) -> subprocess.Popen[str]:
    (name, *arguments), flag = command
    return subprocess.Popen(
        [sys.executable, "-m", f"finetune_jax.{name}", *arguments, f"{flag}={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(workdir: Path) -> dict[str, Any]:
    """The files that a command leaves in its folder, without times and names of folders."""
    found: dict[str, Any] = {"names": sorted(path.name for path in workdir.iterdir())}
    found["names"] = [name for name in found["names"] if not name.startswith("events")]
    weights = workdir / "artifact" / "model.safetensors"
    if weights.exists():
        found |= {"weights": weights.read_bytes(), "config": read_json(workdir / "config.json")}
    metrics = workdir / "metrics.jsonl"
    if metrics.exists():
        rows = map(json.loads, metrics.read_text().splitlines())
        found["rows"] = [(row["step"], row["split"], row.get("loss")) for row in rows]
    if (workdir / "results.jsonl").exists():
        rows = map(json.loads, (workdir / "results.jsonl").read_text().splitlines())
        found["records"] = sorted(
            (row["key"], row["what"], json.dumps([row.get("validation"), row.get("test")]))
            for row in rows
        )
    return found


def _prepare() -> Trial:
    folder = Path(tempfile.mkdtemp(prefix="pairs_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(folder)


if __name__ == "__main__":
    main("pairs", _prepare, trials=40)
