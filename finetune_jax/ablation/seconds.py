"""``seconds.txt``: the time that each call of an ablation took."""

from __future__ import annotations

import math
from pathlib import Path

from finetune_jax.progress import say


def add_seconds(path: Path, seconds: float) -> float:
    """Writes down the time of a call; returns the time of all calls, in seconds.

    Times are for orientation: a file that is damaged or cannot be written ends no ablation.
    """
    try:
        earlier = [float(text) for text in path.read_text(encoding="utf-8").split()]
        if not all(0 <= value < math.inf for value in earlier):
            raise ValueError("expected times in seconds")
    except FileNotFoundError:
        earlier = []
    except (OSError, ValueError) as error:
        say(f"{path}: {error}; the time of earlier calls is not counted")
        earlier = []
    try:
        path.write_text("\n".join(f"{value:.1f}" for value in [*earlier, seconds]) + "\n")
    except OSError as error:
        say(f"{path}: cannot be written: {error.strerror}")
    return math.fsum(earlier) + seconds
