"""Lists the reproductions with their last verdict, and runs the reproductions for pods.

Commands:
  python -m experiments                      # the list
  python -m experiments --write              # writes experiments/README.md as well
  python -m experiments run NAME [--seeds=3] [--only=FIGURE,FIGURE] [--workdir=runs/pods]
      [--data_dir=DIR] [--prepare]           # trains a table of runs and records its verdicts
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.reproduction import RESULTS, Reproduction, RunTable, cell
from finetune_jax import cli
from finetune_jax.errors import UserError, nearest

_WRITE = flags.DEFINE_bool("write", False, "Write experiments/README.md.")

FOLDER = Path(__file__).parent


def scripts() -> tuple[list[Reproduction], dict[str, str]]:
    """The reproductions, and the first docstring line of every other script by name."""
    reproductions, others = [], {}
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem.startswith("_") or path.stem == "reproduction":
            continue
        source = path.read_text()
        if "\nREPRODUCTION = " in source:
            module = importlib.import_module(f"experiments.{path.stem}")
            reproductions.append(module.REPRODUCTION)
        else:
            others[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return reproductions, others


def run_tables() -> list[str]:
    """Names of the reproductions that ``run`` accepts: modules with a ``TABLE``."""
    return [path.stem for path in sorted(FOLDER.glob("*.py")) if "\nTABLE = " in path.read_text()]


def last_result(name: str) -> dict[str, Any] | None:
    """The last recorded result of a reproduction; None if there is none."""
    path = RESULTS / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def last_verdict(reproduction: Reproduction) -> str:
    """The last verdict, or what the reproduction needs if it was never run."""
    result = last_result(reproduction.name)
    needs = f"needs {reproduction.needs}" if reproduction.needs else "never tried"
    return result["verdict"] if result else f"not run ({needs})"


def second_hand(reproduction: Reproduction) -> list[str]:
    """Names of the targets that were not read in their source."""
    return [target.name for target in reproduction.targets if target.second_hand]


def readme() -> str:
    """The content of README.md."""
    reproductions, others = scripts()
    lines = [
        "# Experiments",
        "",
        "Written by `python -m experiments --write`. Each verdict is computed from the recorded",
        "figures and the targets, and links to them. `†` marks papers with targets that were not",
        "read in the source, but recalled from memory or read in another text.",
        "",
        "| reproduction | paper | claim | verdict | hardware |",
        "|---|---|---|---|---|",
    ]
    for reproduction in reproductions:
        name, verdict = reproduction.name, last_verdict(reproduction)
        cells = [
            f"[`{name}`]({name}.py)",
            reproduction.paper + " †" * bool(second_hand(reproduction)),
            reproduction.claim,
            f"[{verdict}](results/{name}/README.md)" if last_result(name) else verdict,
            reproduction.hardware,
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    tables = [f"`{name}`" for name in run_tables()]
    lines += ["", "`python -m experiments run NAME` runs a reproduction for pods:"]
    lines += [f"{', '.join(tables)}.", "The docstring of every other script gives its command.", ""]
    lines += ["Other scripts, which measure or prepare:", ""]
    lines += [f"- [`{name}`]({name}.py): {line}" for name, line in others.items()]
    return "\n".join(lines) + "\n"


def print_list(argv: Sequence[str]) -> None:
    """Prints the reproductions, and writes README.md with ``--write``."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    reproductions, _ = scripts()
    width = max(len(reproduction.name) for reproduction in reproductions)
    for reproduction in reproductions:
        print(f"{reproduction.name:{width}}  {last_verdict(reproduction)}")
        print(f"{'':{width}}  {reproduction.command}")
        if names := second_hand(reproduction):
            which = "all" if len(names) == len(reproduction.targets) else "; ".join(names)
            print(f"{'':{width}}  second-hand targets: {which}")
    if _WRITE.value:
        (FOLDER / "README.md").write_text(readme())


def find_table(arguments: Sequence[str]) -> RunTable:
    """The table of runs that the arguments of ``run`` name.

    Raises:
      UserError: not exactly one argument, or a name without a table of runs.
    """
    names = run_tables()
    if len(arguments) != 1:
        raise UserError(f"run: expected one name of {', '.join(names)}, found {list(arguments)}")
    if arguments[0] not in names:
        raise UserError(f"run: no table of runs {arguments[0]!r}.{nearest(arguments[0], names)}")
    return importlib.import_module(f"experiments.{arguments[0]}").TABLE


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] != ["run"]:
        cli.run(print_list)
        return
    # Imported here, because the module defines the flags of ``run`` and imports JAX.
    from experiments import run_table

    flags.adopt_module_key_flags(run_table)
    cli.run(lambda argv: run_table.run_table(find_table(argv[2:])))


if __name__ == "__main__":
    main()
