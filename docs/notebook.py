"""Executes the code cells of a notebook in one namespace and writes their outputs into it.

python docs/notebook.py docs/tutorial.ipynb [OUTPUT.ipynb]
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Returns the notebook with new outputs; an error in a cell is raised as it is.

    Args:
      notebook: content of an ``.ipynb`` file, format 4. A cell prints text and may end in an
        expression, whose ``repr`` is its result.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = _run("".join(cell["source"]), f"cell {count}", names)
            for output in outputs:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = count
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _run(source: str, name: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, result = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), names)
        if isinstance(last, ast.Expr):
            result = eval(compile(ast.Expression(last.value), name, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    if result is not None:
        data = {"text/plain": _lines(repr(result))}
        outputs.append({"output_type": "execute_result", "metadata": {}, "data": data})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(source: str, output: str = "") -> None:
    """Executes a notebook file, in place unless an output is given."""
    notebook = execute(json.loads(Path(source).read_text()))
    Path(output or source).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
