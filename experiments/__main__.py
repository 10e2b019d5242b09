"""Lists the reproductions with their last verdict, and the other scripts.

Commands:
  python -m experiments            # the list
  python -m experiments --write    # experiments/README.md as well
"""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.reproduction import RESULTS, Reproduction, cell

_WRITE = flags.DEFINE_bool("write", False, "Write experiments/README.md.")

FOLDER = Path(__file__).parent


def scripts() -> tuple[list[Reproduction], dict[str, str]]:
    """The reproductions, and the first line of every other script by name."""
    found, others = [], {}
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem.startswith("_") or path.stem == "reproduction":
            continue
        source = path.read_text()
        if "\nREPRODUCTION = " in source:
            found.append(importlib.import_module(f"experiments.{path.stem}").REPRODUCTION)
        else:
            others[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return found, others


def last_result(name: str) -> dict[str, Any] | None:
    """What was recorded last."""
    path = RESULTS / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def said(reproduction: Reproduction) -> str:
    """The last verdict."""
    result = last_result(reproduction.name)
    needs = f"needs {reproduction.needs}" if reproduction.needs else "never tried"
    return result["verdict"] if result else f"not run ({needs})"


def second_hand(reproduction: Reproduction) -> list[str]:
    """Names of the targets that were not read in the source itself."""
    return [target.name for target in reproduction.targets if target.second_hand]


def readme() -> str:
    """The content of README.md."""
    found, others = scripts()
    lines = [
        "# Experiments",
        "",
        "Written by `python -m experiments --write`. A verdict follows from the recorded figures",
        "and the targets, and links to them; `†` marks papers with targets that were not read in",
        "the source itself, but recalled or read elsewhere.",
        "",
        "| reproduction | paper | claim | verdict | hardware |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        verdict = said(one)
        link = f"[{verdict}](results/{one.name}/README.md)" if last_result(one.name) else verdict
        cells = [
            f"[`{one.name}`]({one.name}.py)",
            one.paper + " †" * bool(second_hand(one)),
            one.claim,
            link,
            one.hardware,
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    lines += ["", "Other scripts, which measure or prepare:", ""]
    lines += [f"- [`{name}`]({name}.py): {line}" for name, line in others.items()]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    found, _ = scripts()
    width = max(len(one.name) for one in found)
    for one in found:
        print(f"{one.name:{width}}  {said(one)}")
        print(f"{'':{width}}  {one.command}")
        if names := second_hand(one):
            which = "all" if len(names) == len(one.targets) else "; ".join(names)
            print(f"{'':{width}}  second-hand targets: {which}")
    if _WRITE.value:
        (FOLDER / "README.md").write_text(readme())


if __name__ == "__main__":
    app.run(main)
