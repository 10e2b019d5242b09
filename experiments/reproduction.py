"""The claim of a reproduction, the measured figures, and the verdict that follows from both.

``python -m experiments`` lists the modules of this folder that define ``REPRODUCTION``. Such a
module measures its figures in `main`, or defines a ``TABLE`` of runs for ``python -m experiments
run NAME``. In both cases `record` compares the figures with the targets and writes
``results/NAME/``. Verdicts are always computed.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Target:
    """A published figure, or a claimed direction.

    Attributes:
      name: name of the target, unique within the reproduction.
      value: the published figure; for a direction, the bound of the measured interval.
      kind: ``within``: the measured figure must differ from `value` by at most `tolerance`;
        ``above`` or ``below``: the whole measured interval must be on that side of `value`.
      tolerance: tolerance in the unit of `value`.
      unit: unit of `value`, such as ``% error``.
      source: where the figure is printed.
      second_hand: whether the figure was read in another text or recalled from memory, and not read
        in its source.
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
        """The condition under which the target counts as reproduced, as text."""
        if self.kind == "within":
            return f"{self.value:g} ± {self.tolerance:g} {self.unit}"
        return f"interval {self.kind} {self.value:g} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured figure.

    Attributes:
      value: the figure, in the unit of its target.
      low, high: ends of the 95 % interval; nan if there is no interval.
      n: number of scored examples.
      seeds: number of runs.
      note: remark for the reader.
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
    """The reason why a figure was not measured.

    Attributes:
      needs: what is missing.
    """

    needs: str


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A published result, and what is needed to reproduce it.

    Attributes:
      name: name of the module.
      paper: authors, year, and where the paper can be found.
      claim: the claim in one sentence.
      targets: figures to compare with.
      hardware: hardware that the reproduction needs.
      hazards: known reasons why figures may differ.
      command: exact command line.
      needs: files or hardware that this repository does not contain; shown if the reproduction was
        never run.
      config: path of the config file, if all targets use the same file.
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


@dataclasses.dataclass(frozen=True)
class RunTable:
    """A reproduction whose figures are scores of runs of one config file.

    Attributes:
      reproduction: the reproduction, with a config. Each target is the figure of an argument or a
        derived figure.
      arguments: by name of a figure, argument of the config file; if empty, the name of each target
        is its argument.
      metrics: by name of a figure, the score to report in per cent, a score in [-1, 1]; other
        figures report ``accuracy``.
      derived: computes further figures, such as averages, from the measured figures. Figures that
        it leaves out are not run.
    """

    reproduction: Reproduction
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    derived: Callable[[dict[str, Measured]], dict[str, Measured]] = lambda found: {}


def machine() -> str:
    """The hardware of this process: the accelerators that JAX found, or the number of CPU cores."""
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
        # The tolerance is widened by one part in 10^9, because decimal figures are rounded.
        good = abs(found.value - target.value) <= target.tolerance * (1 + 1e-9) + 1e-12
    elif target.kind == "above":
        good = found.low > target.value
    else:
        good = found.high < target.value
    return "reproduced" if good else "not reproduced"


def overall(verdicts: Sequence[str]) -> str:
    """One verdict about all targets that were run, with the number of targets that were not."""
    run = [text for text in verdicts if not text.startswith("not run")]
    if not run:
        return verdicts[0] if len(set(verdicts)) == 1 else "not run"
    good = run.count("reproduced")
    text = "reproduced" if good == len(run) else "not reproduced"
    if good not in (0, len(run)):
        text = f"partly reproduced ({good} of {len(run)} targets)"
    left = len(verdicts) - len(run)
    return text + (f"; {left} not run" if left else "")


def record(
    reproduction: Reproduction,
    found: Mapping[str, Measured | NotRun],
    provenance: Mapping[str, Any],
    text: str = "",
    folder: Path | None = None,
) -> Path:
    """Compares figures with the targets, and writes ``result.json`` and ``README.md``.

    Args:
      reproduction: the reproduction with its targets.
      found: the figure of every target, by name of the target.
      provenance: ``config_hash`` (one hash, or several hashes by name), ``versions``, ``seconds``,
        and ``command`` if the command differs from that of the reproduction.
      text: Markdown to put below the table of verdicts.
      folder: folder to write to; if None, ``results/NAME``.

    Returns:
      The path of ``README.md``.

    Raises:
      ValueError: `found` has other names than the targets.
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
        "verdict": overall([str(row["verdict"]) for row in rows]),
        "date": datetime.date.today().isoformat(),
        "command": reproduction.command,
        "machine": machine(),
        **provenance,
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
    """Text for a cell of a Markdown table: in one line, with vertical bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def set_aside(folder: Path) -> Path:
    """Renames a folder to FOLDER_of_another_length, …_2, …, and returns the new path."""
    names = (f"{folder.name}_of_another_length{f'_{n}' * (n > 1)}" for n in itertools.count(1))
    free = next(path for name in names if not (path := folder.with_name(name)).exists())
    return folder.rename(free)
