"""The ledger loses no whole line and keeps no half one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.ablation.ledger import Ledger
from finetune_jax.errors import UserError


@given(st.integers(0, 200))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_grows_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("ledger") / "results.jsonl"
    ledger = Ledger(path)
    for key in "abcd":
        ledger.append({"key": key, "what": "trained", "value": float("nan")})
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    again = Ledger(path)
    assert len(again) == content[:cut].count(b"\n")
    for key in "abcd":
        again.append({"key": key, "what": "trained", "value": float("nan")})
    assert path.read_bytes() == content


def test_nothing_is_written_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    ledger.append({"key": "a", "what": "trained", "value": 1})
    ledger.append({"key": "a", "what": "trained", "value": 2})
    ledger.append({"key": "a", "what": "scored", "value": 3})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 3]
    assert Ledger(path).get("a", "trained")["value"] == 1
    assert Ledger(path).find("a", "trained") == Ledger(path).get("a", "trained")
    assert Ledger(path).find("b", "trained") is None
    with pytest.raises(KeyError, match="no record 'trained' of the arm b"):
        Ledger(path).get("b", "trained")


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a", "what": "trained"}\nnonsense\n{"key": "b", "what": "trained"}\n')
    with pytest.raises(UserError, match="line 2"):
        Ledger(path)
