"""What a reproduction claims, what was measured, and the verdict that follows from both.

A module of this folder with a ``REPRODUCTION`` is listed by ``python -m experiments``. Its `main`
measures and calls `record`, which compares with the targets and writes ``results/NAME/``. A verdict
is never typed in.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Target:
    """A published figure, or a claimed direction.

    Attributes:
      name: unique within the reproduction.
      value: published; for a direction, what the measured interval must lie beyond.
      kind: ``within``: measured within `tolerance` of the value; ``above`` or ``below``: the whole
        interval of what was measured on that side of the value.
      tolerance: in the same unit.
      unit: such as ``% error``.
      source: where the figure is printed.
      second_hand: it was read in somebody else's text, or recalled, and not in the source itself.
    """

    name: str
    value: float
    kind: Literal["within", "above", "below"] = "within"
    tolerance: float = 0.0
    unit: str = "%"
    source: str = ""
    second_hand: bool = False

    @property
    def wanted(self) -> str:
        """What counts as reproduced, in words."""
        if self.kind == "within":
            return f"{self.value:g} ± {self.tolerance:g} {self.unit}"
        return f"interval {self.kind} {self.value:g} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A figure of ours.

    Attributes:
      value: in the target's unit.
      low, high: 95 % interval; nan if there is none.
      n: examples scored.
      seeds: runs.
      note: whatever a reader must know.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    seeds: int = 1
    note: str = ""

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


@dataclasses.dataclass(frozen=True)
class NotRun:
    """Why there is no figure.

    Attributes:
      needs: what would have to be there.
    """

    needs: str


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A published result, and what it takes to get it again.

    Attributes:
      name: of the module.
      paper: authors, year, and where it can be found.
      claim: one sentence.
      targets: figures.
      hardware: what it takes.
      hazards: what is known to make figures differ.
      command: exact.
      needs: what has to be there that this repository does not hold; shown while it was never run.
      config: file it reads, if there is one for all targets.
    """

    name: str
    paper: str
    claim: str
    targets: tuple[Target, ...]
    hardware: str
    hazards: str
    command: str
    needs: str = ""
    config: str = ""


def machine() -> str:
    """What this process ran on: the devices that JAX found, or the cores there are."""
    jax = sys.modules.get("jax")
    devices = jax.devices() if jax else []
    if devices and devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"{os.cpu_count()} CPU cores"


def verdict(target: Target, found: Measured | NotRun) -> str:
    """``reproduced``, ``not reproduced`` or ``not run (needs …)``."""
    if isinstance(found, NotRun):
        return f"not run (needs {found.needs})"
    if target.kind == "within":
        # One part in 10^9, so that a difference of decimal figures is not lost to rounding.
        good = abs(found.value - target.value) <= target.tolerance * (1 + 1e-9) + 1e-12
    elif target.kind == "above":
        good = found.low > target.value
    else:
        good = found.high < target.value
    return "reproduced" if good else "not reproduced"


def overall(verdicts: Sequence[str]) -> str:
    """One verdict: of all targets that were run, and how many there are."""
    run = [v for v in verdicts if not v.startswith("not run")]
    if not run:
        return verdicts[0] if len(set(verdicts)) == 1 else "not run"
    good = run.count("reproduced")
    said = "reproduced" if good == len(run) else "not reproduced"
    if good not in (0, len(run)):
        said = f"partly reproduced ({good} of {len(run)} targets)"
    left = len(verdicts) - len(run)
    return said + (f"; {left} not run" if left else "")


def record(
    reproduction: Reproduction,
    found: Mapping[str, Measured | NotRun],
    about: Mapping[str, Any],
    text: str = "",
    folder: Path | None = None,
) -> Path:
    """Compares with the targets and writes ``result.json`` and ``README.md``.

    Args:
      reproduction: with the targets.
      found: by name of target, all of them.
      about: ``config_hash`` (one, or several by name), ``versions``, ``seconds``; ``command`` if
        another one was run than the reproduction's.
      text: Markdown that goes below the table of verdicts.
      folder: in place of ``results/NAME``.

    Returns:
      The path of ``README.md``.
    """
    names = [target.name for target in reproduction.targets]
    if sorted(found) != sorted(names):
        raise ValueError(f"{reproduction.name}: expected figures for {names}, found {list(found)}")
    folder = folder or RESULTS / reproduction.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "target": dataclasses.asdict(target),
            "found": _plain(found[target.name]),
            "verdict": verdict(target, found[target.name]),
        }
        for target in reproduction.targets
    ]
    result = {
        "name": reproduction.name,
        "verdict": overall([row["verdict"] for row in rows]),
        "date": datetime.date.today().isoformat(),
        "command": reproduction.command,
        "machine": machine(),
        **about,
        "rows": rows,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    path = folder / "README.md"
    path.write_text(_page(reproduction, found, result, text))
    return path


def _plain(found: Measured | NotRun) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _page(
    reproduction: Reproduction,
    found: Mapping[str, Measured | NotRun],
    result: Mapping[str, Any],
    text: str,
) -> str:
    lines = [
        f"# {reproduction.name}: {result['verdict']}",
        "",
        f"{reproduction.claim} ({reproduction.paper})",
        "",
        "| target | wanted | measured [95 %] | n | seeds | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for target, row in zip(reproduction.targets, result["rows"], strict=True):
        ours = found[target.name]
        shown = (
            ["–", "", ""]
            if isinstance(ours, NotRun)
            else [str(ours) + f" {target.unit}", f"{ours.n:,}" if ours.n else "", str(ours.seeds)]
        )
        cells = [target.name, target.wanted, *shown, row["verdict"]]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    lines.append("")
    for target in reproduction.targets:
        ours = found[target.name]
        note = getattr(ours, "note", "")
        source = f"{target.source}{' (second-hand)' if target.second_hand else ''}"
        if source or note:
            lines.append(f"- {target.name}: {'; '.join(x for x in (source, note) if x)}")
    hashes = result["config_hash"]
    if isinstance(hashes, dict):
        hashes = ", ".join(f"{key} ({name})" for name, key in hashes.items())
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines += [
        "",
        f"Hazards: {reproduction.hazards}",
        "",
        "```",
        result["command"],
        "```",
        "",
        f"{result['date']}; {result['seconds']:.0f} s on {result['machine']}; {versions}; "
        f"config {reproduction.config}{' ' * bool(reproduction.config)}{hashes}",
        "",
    ]
    return "\n".join(lines) + (f"\n{text.strip()}\n" if text else "")


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: one line, in which no bar ends the cell."""
    return " ".join(text.split()).replace("|", "\\|")
