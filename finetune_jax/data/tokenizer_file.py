"""Opens a ``tokenizer.json`` of any origin with the tokenizers library.

Before the library reads a file for the first time in this process, its size, its rules and its
patterns are checked. A file that was never used on this machine is then tried in a process of its
own, with a limit of time and memory: see `finetune_jax.data.tokenizer_probe`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_jax.data import tokenizer_probe
from finetune_jax.errors import UserError
from finetune_jax.files import parse_json, read_json
from finetune_jax.known import TOKENIZERS, is_known, remember
from finetune_jax.progress import say

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest tokenizer file that is read."""

LONGEST_TEXT = tokenizer_probe.LONGEST
"""Characters of a text that are tokenized."""

_MOST_GROWTH = 64
_SECONDS = 60
_PATTERN = 10_000  # characters


def read_tokenizer(path: Path) -> str:
    """Reads a tokenizer file as text.

    Raises:
      UserError: the file is missing, larger than 64 MiB, or no text.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(
                f"{path}: {path.stat().st_size} bytes; expected a tokenizer of at most 64 MiB"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a tokenizer's JSON: {error}") from None


def with_side(content: str, config: Path) -> str:
    """Returns the content of a tokenizer file with the side at which its config cuts texts.

    Args:
      content: content of a ``tokenizer.json``.
      config: the ``tokenizer_config.json`` beside it, which need not exist. Its
        ``truncation_side`` goes before the direction in the tokenizer file, as in transformers.
    """
    if not config.is_file():
        return content
    try:
        side = read_json(config).get("truncation_side")
        rules = parse_json(content)
    except UserError as error:
        say(f"{config}: not used: {error}")
        return content
    if side not in ("left", "right"):
        return content
    own = rules.get("truncation") if isinstance(rules, dict) else None
    known = own if isinstance(own, dict) else {}
    if known.get("direction", "Right").lower() == side:
        return content
    # The length is replaced when the tokenizer is opened.
    usual = {"max_length": 512, "strategy": "LongestFirst", "stride": 0}
    rules["truncation"] = usual | known | {"direction": side.title()}
    return json.dumps(rules, ensure_ascii=False)


def remarks(content: str, config: Path) -> Iterator[str]:
    """What a tokenizer file does in another way than its model may expect.

    Args:
      content: content of a ``tokenizer.json`` that `open_tokenizer` has opened.
      config: the ``tokenizer_config.json`` beside it, which need not exist.
    """
    rules = parse_json(content)
    if not rules.get("post_processor"):
        yield "adds no special tokens, such as [CLS], around a text: it has no post_processor"
    with contextlib.suppress(UserError):  # `with_side` says that the file cannot be read
        lowers = read_json(config).get("do_lower_case") if config.is_file() else None
        normalizer = json.dumps(rules.get("normalizer"))
        does = '"lowercase": true' in normalizer or '"type": "Lowercase"' in normalizer
        if isinstance(lowers, bool) and lowers != does:
            yield (
                f"{'keeps capital letters' if lowers else 'makes letters small'}, although "
                f"{config.name} has do_lower_case={lowers}; this file decides here"
            )


def open_tokenizer(content: str) -> Any:
    """Returns a ``tokenizers.Tokenizer``.

    Args:
      content: content of a ``tokenizer.json``.

    Raises:
      UserError: not a tokenizer, or one that makes texts grow without limit, has a pattern that
        may take for ever, or panics, ends its process, or is too slow for texts of `LONGEST_TEXT`
        characters.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("texts need the tokenizers library: pip install tokenizers") from None
    version = importlib.metadata.version("tokenizers")
    digest = hashlib.sha256(f"{version} 1 {content}".encode("utf-8", "replace")).hexdigest()
    if not is_known(TOKENIZERS, digest):
        _check_rules(content)
        _try_elsewhere(content)
        remember(TOKENIZERS, digest)
    try:
        return Tokenizer.from_str(content)
    except BaseException as error:
        raise refused(error) from None


def refused(error: BaseException) -> BaseException:
    """The error to raise in place of an error of the library, whose panics are no Exceptions."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return UserError(f"data.tokenizer: the tokenizers library fails: {str(error)[:300]}")
    return error


def _unknown_form(why: str) -> str:
    """The end of a message about a file whose form the library does not know; else ""."""
    if "did not match any variant" not in why:
        return ""
    version = importlib.metadata.version("tokenizers")
    return (
        f"; tokenizers {version} does not know the form of this file, which a newer version may "
        f"have written: pip install -U tokenizers, or load and save the tokenizer with the "
        f"transformers of this machine"
    )


def _check_rules(content: str) -> None:
    """Raises UserError for JSON that is no tokenizer, growing texts and dangerous patterns."""
    if len(content) > LARGEST_FILE:
        raise UserError("data.tokenizer: expected a tokenizer of at most 64 MiB")
    try:
        rules = parse_json(content)
    except UserError as error:
        raise UserError(f"data.tokenizer: not a tokenizer's JSON: {error}") from None
    if not isinstance(rules, dict) or not isinstance(rules.get("model"), dict):
        raise UserError("data.tokenizer: not a tokenizer's JSON: expected an object with a 'model'")
    growth = 1.0
    for rule in _objects(rules.get("normalizer")):
        pattern, content_ = rule.get("pattern"), rule.get("content")
        if isinstance(pattern, dict) and isinstance(content_, str):
            literal = pattern.get("String")
            growth *= max(1.0, len(content_) / max(1, len(literal or "")))
    if growth > _MOST_GROWTH:
        raise UserError(
            f"data.tokenizer: its replacements can make a text {growth:.0f} times as long; "
            f"expected at most {_MOST_GROWTH}"
        )
    for rule in _objects(rules):
        if isinstance(pattern := rule.get("Regex"), str):
            _check_pattern(pattern)


def _objects(value: Any) -> list[dict[str, Any]]:
    """All objects in a JSON value, but for those in a vocabulary."""
    if isinstance(value, dict):
        inner = (v for k, v in value.items() if k not in ("vocab", "merges"))
        return [value, *(o for v in inner for o in _objects(v))]
    return [o for v in value for o in _objects(v)] if isinstance(value, list) else []


_TOKEN = re.compile(r"\\.|\(\?(?:<?[=!]|[a-z-]*:|>)?|[()\[\]|]|[*+]|\{\d*,?\d*\}|.", re.S)


def _check_pattern(pattern: str) -> None:
    """Raises UserError for a repeated group that itself repeats or branches, such as ``(a+)+``."""
    if len(pattern) > _PATTERN:
        raise UserError(f"data.tokenizer: a pattern of {len(pattern)} characters is too long")
    groups, classes, closed = [False], 0, False  # whether each open group repeats something
    for token in _TOKEN.findall(pattern):
        if token == "[":
            classes += 1
        elif token == "]":
            classes = max(0, classes - 1)
        elif classes:
            continue
        elif token.startswith("("):
            groups.append(False)
            closed = False
            continue
        elif token == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
            continue
        elif _repeats(token):
            if closed:
                raise UserError(
                    f"data.tokenizer: the pattern {pattern!r:.100} repeats a group that repeats "
                    f"something itself, which can take for ever"
                )
            groups[-1] = True
        closed = False


def _repeats(token: str) -> bool:
    """Whether a token is a quantifier of many repetitions: ``*``, ``+``, ``{5,}``, ``{1,100}``."""
    if token in ("*", "+"):
        return True
    bounds = re.fullmatch(r"\{(\d*)(,?)(\d*)\}", token)
    if not bounds or not (bounds[1] or bounds[2]):
        return False
    most = bounds[3] if bounds[2] else bounds[1]
    return not most or len(most) > 1


def _try_elsewhere(content: str) -> None:
    """Raises UserError if the library fails on difficult texts, in a process of its own."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2",
                   "RUST_BACKTRACE": "0"}  # fmt: skip
    try:
        process = subprocess.run(
            [sys.executable, "-P", tokenizer_probe.__file__],
            input=content.encode("utf-8", "replace"),
            capture_output=True,
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"data.tokenizer: the tokenizer needs more than {_SECONDS} s for texts of "
            f"{LONGEST_TEXT} characters"
        ) from None
    if process.returncode < 0:
        last = process.stderr.decode("utf-8", "replace").strip().split("\n")[0][:200]
        raise UserError(
            f"data.tokenizer: the tokenizer ends its process by signal {-process.returncode}: "
            f"{last}"
        )
    said = process.stdout.decode("utf-8", "replace").strip()
    if process.returncode or said != "fine":
        why = said or process.stderr.decode("utf-8", "replace").strip()[-300:]
        raise UserError(f"data.tokenizer: not a tokenizer that works: {why}{_unknown_form(why)}")
