"""The table of all config keys, read from the comments of ``config.py``: ``--help=config``."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from typing import NamedTuple

from ml_collections import ConfigDict

from finetune_jax import config


class Key(NamedTuple):
    """One key: its dotted name, its type, its default and what it means."""

    name: str
    type: str
    default: str
    meaning: str


def all_keys() -> list[Key]:
    """Returns all keys in the order of `config.default`.

    The meaning of a key is the comment above its line and the comment beside it.
    """
    source = textwrap.dedent(inspect.getsource(config.default))
    lines, comments = source.splitlines(), _comments(source)
    values = config.default()
    found: list[Key] = []
    section = ""
    for statement in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(statement, ast.Assign):
            continue
        name = ast.unparse(statement.targets[0]).removeprefix("c").removeprefix(".")
        above = _block_above(statement.lineno, comments, lines)
        if not name or isinstance(values[name], ConfigDict):
            section = above
            continue
        span = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        beside = " ".join(comments[line] for line in span if line in comments)
        meaning = " ".join(filter(None, (section, above, beside)))
        found.append(Key(name, _type(values[name]), _text(values[name]), meaning))
        section = ""
    return found


def as_text(width: int = 100) -> str:
    """All keys as text, in lines of at most ``width`` characters where the words allow it."""
    lines = []
    for key in all_keys():
        lines.append(f"--config.{key.name}={key.default}  ({key.type})")
        lines += textwrap.wrap(
            key.meaning, width, initial_indent="    ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def as_markdown() -> str:
    """All keys as a Markdown table."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in all_keys():
        default, meaning = (text.replace("|", "\\|") for text in (key.default, key.meaning))
        shown = f"`{default}`" if default else "empty"
        rows.append(f"| `{key.name}` | {key.type} | {shown} | {meaning} |")
    return "\n".join(rows)


def _comments(source: str) -> dict[int, str]:
    """The text of each comment by its line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _block_above(line: int, comments: dict[int, str], lines: list[str]) -> str:
    """The comment lines directly above a line, as one text."""
    first = line
    while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return " ".join(comments[number] for number in range(first, line))


def _type(value: object) -> str:
    if isinstance(value, bool):
        return "True or False"
    names = {int: "whole number", float: "number", str: "text", tuple: "list"}
    return names.get(type(value), "text")


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
