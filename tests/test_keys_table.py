"""The table of config keys has all keys with their meaning, and docs/config.md is this table.

`PYTHONPATH=. python tests/test_keys_table.py` writes the page anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from finetune_jax import config, config_keys

PAGE = Path(__file__).parent.parent / "docs" / "config.md"


def page(text: str) -> str:
    return re.sub(r"\| key \| type.*", config_keys.as_markdown() + "\n", text, flags=re.S)


def test_every_key_has_a_meaning_and_its_default():
    values = config.default()
    found = {key.name: key for key in config_keys.all_keys()}
    assert sorted(found) == sorted(config.keys(values))
    assert not [name for name, key in found.items() if len(key.meaning) < 8]
    assert found["train.batch_size"].default == "128"
    assert found["train.batch_size"].type == "whole number"
    assert found["data.text_columns"] == (
        "data.text_columns", "list", "text", "one or two columns of an example",
    )  # fmt: skip
    # A comment above a line, in several lines, and a comment beside it are one text.
    assert found["data.label_kind"].meaning.endswith("empty: class or number, inferred.")


def test_the_page_is_that_of_the_code():
    assert page(PAGE.read_text()) == PAGE.read_text(), (
        "run PYTHONPATH=. python tests/test_keys_table.py"
    )


def test_help_lists_the_keys(capsys, monkeypatch):
    from finetune_jax.__main__ import main

    monkeypatch.setattr("sys.argv", ["finetune-jax", "--help=config"])
    main()
    text = capsys.readouterr().out
    assert "--config.optimizer.momentum=0.9  (number)\n    of sgd, in [0, 1)\n" in text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
