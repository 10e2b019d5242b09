"""Changes the code in one place at a time and reports which changes no test notices.

  python tests/mutation.py [--only=PATTERN] [--workers=2]

Each mutant in `tests/mutants.py` replaces a text that occurs once in a file, and names the
tests that should fail. The code is copied, so the working tree stays as it is.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
COPIED = ("finetune_jax", "tests", "configs", "experiments", "pyproject.toml", "docs")


def main() -> None:
    """Runs the mutants; the exit status is 1 if fewer than 95 % were killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regex of the files to mutate")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if re.search(options.only, m.file)]
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        outcomes = list(pool.map(_report, mutants))
    killed = sum(outcomes)
    print(f"{killed} of {len(mutants)} mutants killed ({killed / max(len(mutants), 1):.1%})")
    sys.exit(killed < 0.95 * len(mutants))


def _report(mutant: Mutant) -> bool:
    killed, seconds = _killed(mutant)
    word = "killed  " if killed else "SURVIVED"
    change = f"{mutant.old.strip()!r} -> {mutant.new.strip()!r}"
    print(f"{word} {mutant.file}: {change} ({seconds:.0f} s)", flush=True)
    return killed


def _killed(mutant: Mutant) -> tuple[bool, float]:
    """Returns whether a test fails on the mutant, and the seconds that the tests took.

    Raises:
      ValueError: the text is not in the file exactly once, or no test ran.
    """
    with tempfile.TemporaryDirectory(prefix="mutant_") as name:
        folder = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        file = folder / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
        file.write_text(text.replace(mutant.old, mutant.new))
        began = time.monotonic()
        # Slow tests too: some mutants are noticed by a slow test alone.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-m",
            "slow or not slow",
            *mutant.tests,
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
    if done.returncode not in (0, 1):
        raise ValueError(
            f"{mutant.file}: pytest ended with {done.returncode}: {done.stdout[-800:]}"
        )
    return done.returncode == 1, seconds


if __name__ == "__main__":
    main()
