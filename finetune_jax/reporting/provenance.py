"""Sections of a page about the origin of a model: movement, plan, weight file, config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax import schema
from finetune_jax.errors import UserError
from finetune_jax.evaluation.drift import load_start, parameter_movement
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.files import read_json
from finetune_jax.reporting import charts, html
from finetune_jax.schemes import FROZEN

Section = tuple[str, str]
"""Heading and HTML."""


def movement(evaluator: Evaluator, base: str) -> Section:
    """Distance of each stage to the weight file; `base` replaces the path of the file, if given."""
    heading = "Movement of the parameters"
    try:
        start = load_start(evaluator, base)
    except UserError as error:
        return heading, f"<p>Not run: {html.text(error)}.</p>"
    rows = parameter_movement(evaluator, start)
    moved = [row for row in rows if row["leaves"] and row["moved"] and np.isfinite(row["relative"])]
    kept = [row["stage"] for row in rows if row["leaves"] and not row["moved"]]
    fresh = [row["stage"] for row in rows if not row["leaves"] and row["new"]]
    words = ["From the weight file to the artifact, stages from input to output."]
    if kept:
        words.append(f"Bit-identical to the file: {', '.join(kept)}.")
    if fresh:
        words.append(f"New, with nothing to compare with: {', '.join(fresh)}.")
    keys = ["stage", "leaves", "norm", "moved", "relative", "new", "beside"]
    header = ["stage", "leaves", "|w0|", "|w − w0|", "relative", "new leaves", "delta leaves"]
    table = html.table(header, [[row[k] for k in keys] for row in rows], numeric=range(1, 7))
    drawn = charts.movement(moved) if moved else ""
    return heading, (
        f"<p>{html.text(' '.join(words))}</p>"
        + (html.figure(drawn, "relative change of the parameters by stage") if moved else "")
        + f"<details><summary>Norms</summary>{table}</details>"
    )


_SHAPE = schema.list_of(schema.integer())
_PLAN = schema.record(
    {
        "hash": schema.text(),
        "scheme": schema.text(),
        "batch_norm": schema.text(),
        "leaves": schema.list_of(
            schema.record(
                {
                    "path": schema.text(),
                    "shape": _SHAPE,
                    "group": schema.text(),
                    "lr": schema.number(),
                    "decays": schema.flag,
                    "delta": schema.flag,
                },
                rest=True,
            )
        ),
    },
    {"phases": schema.list_of(schema.an_object)},
    rest=True,
)
_MANIFEST = schema.record(
    {
        "file": schema.maybe(schema.text()),
        "rows": schema.list_of(
            schema.record(
                {
                    "source_name": schema.maybe(schema.text()),
                    "source_shape": schema.maybe(_SHAPE),
                    "leaf": schema.maybe(schema.text()),
                    "shape": schema.maybe(_SHAPE),
                    "decision": schema.text(),
                    "reason": schema.text(),
                },
                rest=True,
            )
        ),
    },
    {"sha256": schema.maybe(schema.text())},
    rest=True,
)


def _checked(path: Path, check: schema.Check) -> dict[str, Any]:
    """The content of a file of a run, which may be a run of another user."""
    content: dict[str, Any] = check(read_json(path), str(path))
    return content


def plan(workdir: Path) -> Section:
    """Table of the leaves of ``plan.json``."""
    saved = _checked(workdir / "plan.json", _PLAN)
    rows = [
        [
            leaf["path"],
            " × ".join(map(str, leaf["shape"])),
            int(np.prod(leaf["shape"], dtype=np.int64)),
            leaf["group"],
            f"{leaf['lr']:g}" if leaf["group"] != FROZEN else "–",
            bool(leaf["decays"]),
            bool(leaf["delta"]),
        ]
        # What trains is first: there are often hundreds of frozen leaves.
        for leaf in sorted(saved["leaves"], key=lambda leaf: leaf["group"] == FROZEN)
    ]
    header = ["leaf", "shape", "scalars", "group", "rate ×", "decays", "delta"]
    trains = sum(row[2] for row in rows if row[3] != FROZEN)
    total = sum(row[2] for row in rows)
    phases = saved.get("phases") or []
    words = (
        f"Scheme {saved['scheme']}, hash {saved['hash']}: {trains:,} of {total:,} scalars train "
        f"({100 * trains / max(total, 1):.1f} %); BatchNorm {saved['batch_norm']}."
    )
    if len(phases) > 1:
        words += f" The last of {len(phases)} phases."
    return "Plan", f"<p>{html.text(words)}</p>" + html.table(
        header, rows, numeric=(2, 4), paths=(0,)
    )


def manifest(workdir: Path) -> Section:
    """Table of the rows of ``manifest.json``."""
    saved = _checked(workdir / "manifest.json", _MANIFEST)
    if saved["file"] is None:
        return "Weight file", "<p>None: the run started from random weights.</p>"

    def shape(value: Any) -> str:
        return " × ".join(map(str, value)) if value is not None else ""

    rows = [
        [
            row["source_name"] or "",
            shape(row["source_shape"]),
            row["leaf"] or "",
            shape(row["shape"]),
            row["decision"],
            row["reason"],
        ]
        for row in saved["rows"]
    ]
    header = ["tensor of the file", "its shape", "leaf", "shape", "decision", "reason"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    words = f"{saved['file']}, sha256 {saved.get('sha256')}: every tensor and every leaf."
    return "Weight file", f"<p>{html.text(words)}</p>" + html.table(
        header, rows, paths=(0, 2), words=(5,)
    )


def config(workdir: Path, command: str) -> Section:
    """The text of ``config.json``, and the command that writes the page again."""
    content = json.dumps(read_json(workdir / "config.json"), indent=1)
    shown = f"<details><summary>config.json</summary><pre>{html.text(content)}</pre></details>"
    return "Config", html.command("This page is written again by:", command) + shown
