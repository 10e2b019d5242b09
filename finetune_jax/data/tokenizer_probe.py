"""Loads a tokenizer and encodes difficult texts: a script, run in a process of its own.

The library is written in Rust. A hostile file can make the library panic, allocate without end, end
the process or never return, and none of these is an exception of Python. The script reads the
``tokenizer.json`` from standard input, and prints ``fine``, or what went wrong.
"""

from __future__ import annotations

import json
import sys

LONGEST = 100_000  # characters; `finetune_jax.data.tokenizer_file.LONGEST_TEXT`
_MEMORY = 8 * 2**30  # bytes of address space

_UNITS = ("a", "1", " ", "\n", "!", "Ab 1.\n", "漢", "é\u0301", "\0\ufeff\u200b", "😀")
_SHORT = ("", " ", "a", "The cat sat on the mat.", "\0", "é\u0301\u200b漢字😀 \ufeff", "[MASK]<s>")


def _literals(value: object) -> list[str]:
    """The characters in the patterns of a tokenizer, which its loops may be about."""
    if isinstance(value, dict):
        own = [v for k, v in value.items() if k in ("Regex", "String") and isinstance(v, str)]
        return [*"".join(own), *(c for v in value.values() for c in _literals(v))]
    if isinstance(value, list):
        return [c for v in value for c in _literals(v)]
    return []


def texts(content: str) -> list[str]:
    """Short and very long texts, made of common characters and of those in the patterns."""
    parsed = json.loads(content)
    rules = [parsed.get(key) for key in ("normalizer", "pre_tokenizer")]
    literals = [c for c in dict.fromkeys(_literals(rules)) if c not in _UNITS][:16]
    # The control character makes a pattern fail that has matched so far. The characters
    # of the patterns come after it, because the library does not search a text that lacks them.
    end = "\x01" + "".join(literals)
    return [*_SHORT, *(u * (LONGEST // len(u) - len(end)) + end for u in (*_UNITS, *literals))]


def main() -> None:
    """Reads, loads, encodes and prints."""
    content = sys.stdin.buffer.read().decode("utf-8")
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on every system; the limit of time holds everywhere
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_truncation()
        for text in texts(content):
            tokenizer.encode(text)
        tokenizer.encode("a", "a")
    except BaseException as error:  # noqa: BLE001  a panic is no Exception
        print(f"{type(error).__name__}: {str(error)[:200]}")
    else:
        print("fine")


if __name__ == "__main__":
    main()
