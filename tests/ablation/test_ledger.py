"""The ledger loses no complete line and keeps no incomplete line."""

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


def test_a_torn_line_is_removed_even_if_it_reads_as_a_record(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a", "what": "trained"}\n{"key": "b", "what": "trained"}')
    ledger = Ledger(path)
    assert ledger.find("b", "trained") is None and len(ledger) == 1
    assert path.read_text() == '{"key": "a", "what": "trained"}\n'
    ledger.append({"key": "c", "what": "trained"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_records_of_one_arm_are_told_apart_by_their_kind(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    ledger.append({"key": "a", "what": "trained", "value": 1})
    assert ledger.find("a", "scored 0") is None
    ledger.append({"key": "a", "what": "scored 0", "value": 2})
    ledger.append({"key": "b", "what": "trained", "value": 3})
    assert ledger.get("a", "scored 0")["value"] == 2 and ledger.get("b", "trained")["value"] == 3


def test_a_record_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    path, synced = tmp_path / "results.jsonl", []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(path.read_text()))
    ledger = Ledger(path)
    ledger.append({"key": "a", "what": "trained"})
    assert synced == ['{"key": "a", "what": "trained"}\n']

    def fail(number):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ledger.append({"key": "b", "what": "trained"})
    assert ledger.find("b", "trained") is None


def test_undefined_numbers_are_null_and_read_as_such(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    ledger.append({"key": "a", "what": "trained", "value": float("inf")})
    assert ledger.get("a", "trained")["value"] is None
    assert Ledger(tmp_path / "results.jsonl").get("a", "trained")["value"] is None
