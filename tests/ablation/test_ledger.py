"""The ledger loses no complete line, keeps no incomplete line, and believes no changed line."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.ablation.ledger import Ledger
from finetune_jax.ablation.outcome import RunCost
from finetune_jax.ablation.seconds import add_seconds
from finetune_jax.errors import UserError
from finetune_jax.files import seal

COST = dict.fromkeys(RunCost.__dataclass_fields__, 1)


def record(key, value=1.0, what="trained", **changes):
    """A record with an accuracy."""
    scores = {"accuracy": value}
    result = (
        {"steps": 3, "validation": scores, "cost": COST}
        if what == "trained"
        else {"asked": {}, "test": scores, "others": {}}
    )
    arm = {"row": "r", "point": {}, "seed": 0, "share": 1.0}
    return {"key": key, "what": what, **arm, **result, **changes}


def accuracy(found):
    return (found.get("validation") or found["test"])["accuracy"]


def write(path, *keys):
    ledger = Ledger(path)
    for key in keys:
        ledger.append(record(key))
    return ledger


@pytest.fixture(scope="module")
def four_records(tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "results.jsonl"
    write(path, *"abcd")
    return path.read_bytes()


@given(st.integers(0, 3000))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_grows_on(
    tmp_path_factory, four_records, cut
):
    path, content = tmp_path_factory.getbasetemp() / "cut.jsonl", four_records
    path.write_bytes(content[:cut])
    again = Ledger(path)
    # A line that lacks only its newline is complete.
    ends = [number for number, byte in enumerate(content) if byte == ord("\n")]
    assert len(again) == sum(end <= cut for end in ends)
    for key in "abcd":
        again.append(record(key))
    assert path.read_bytes() == content


def test_nothing_is_written_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    ledger.append(record("a", 1))
    ledger.append(record("a", 2))
    ledger.append(record("a", 3, "scored 0"))
    assert [accuracy(json.loads(line)) for line in path.read_text().splitlines()] == [1, 3]
    assert accuracy(Ledger(path).get("a", "trained")) == 1
    assert Ledger(path).find("a", "trained") == Ledger(path).get("a", "trained")
    assert Ledger(path).find("b", "trained") is None
    with pytest.raises(KeyError, match="no record 'trained' of the arm b"):
        Ledger(path).get("b", "trained")


def test_an_edited_number_is_refused_by_its_line(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, "a", "b")
    text = path.read_text()
    place = text.rindex('"accuracy": 1.0')
    path.write_text(text[:place] + '"accuracy": 9.0' + text[place + 15 :])
    with pytest.raises(UserError, match=r"line 2: .*does not have its own checksum.*Remove line 2"):
        Ledger(path)


DAMAGE = {
    "nonsense": (lambda line: b"nonsense", "not readable as JSON"),
    "empty": (lambda line: b"", "the line is empty"),
    "zeros": (lambda line: bytes(40), "zero bytes"),
    "binary": (lambda line: b"\xff\xfe" + line, "no text"),
    "cut": (lambda line: line[:30], "not readable as JSON"),
    "another key": (lambda line: line.replace(b'"sha256"', b'"shb256"'), "has no key 'shb256'"),
    "a list": (lambda line: b"[1]", "expected a JSON object"),
    "a deep list": (lambda line: b"[" * 10000 + b"]" * 10000, "nested too deeply"),
    "twice": (lambda line: line.replace(b"{", b'{"what": "trained", ', 1), "there twice"),
    "another kind": (
        lambda line: json.dumps(seal({"key": "a", "what": "odd"})).encode(), "unknown kind"),
    "another type": (
        lambda line: json.dumps(seal(record("b", seed="0"))).encode(), "'seed' is 0"),
    "a cost without a key": (
        lambda line: json.dumps(seal(record("b", cost={}))).encode(), "'cost' is not"),
    "other content of another line": (
        lambda line: json.dumps(seal(record("a", 0.5))).encode(), "another record of what line 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", [*DAMAGE])
def test_damage_in_the_middle_is_refused_by_its_line(tmp_path, what):
    path = tmp_path / "results.jsonl"
    write(path, "a", "b", "c")
    change, message = DAMAGE[what]
    lines = path.read_bytes().splitlines()
    lines[1] = change(lines[1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=f"results.jsonl, line 2: .*{message}"):
        Ledger(path)
    path.write_bytes(b"\n".join([lines[0], lines[2]]) + b"\n")
    assert len(Ledger(path)) == 2


def test_a_record_that_has_lost_its_checksum_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    made_of = {"config": "0", "made_of": {"data": "1", "versions": {}}}
    Ledger(path).append(record("a", **made_of))
    path.write_text(re.sub(r', "sha256": "\w+"', "", path.read_text()))
    with pytest.raises(UserError, match="a record without a checksum has no key 'config'"):
        Ledger(path)


def test_records_of_an_earlier_version_are_read_and_reported(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record(key)) + "\n" for key in "ab"))
    ledger = Ledger(path)
    assert len(ledger) == 2 and "2 records of an earlier version" in capsys.readouterr().err
    ledger.append(record("c"))
    assert len(Ledger(path)) == 3


def test_a_folder_in_place_of_the_ledger_is_reported(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(UserError, match="expected a file of records, found a folder"):
        Ledger(tmp_path / "results.jsonl")


def test_a_torn_line_is_removed_even_if_it_reads_as_a_record(tmp_path):
    path = tmp_path / "results.jsonl"
    first = json.dumps(record("a")) + "\n"
    path.write_text(first + json.dumps(record("b")))
    ledger = Ledger(path)
    assert ledger.find("b", "trained") is None and len(ledger) == 1
    assert path.read_text() == first
    ledger.append(record("c"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_records_of_one_arm_are_distinguished_by_their_kind(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    ledger.append(record("a", 1))
    assert ledger.find("a", "scored 0") is None
    ledger.append(record("a", 2, "scored 0"))
    ledger.append(record("b", 3))
    assert accuracy(ledger.get("a", "scored 0")) == 2 and accuracy(ledger.get("b", "trained")) == 3


def test_a_record_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    path, synced = tmp_path / "results.jsonl", []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(path.read_text()))
    ledger = Ledger(path)
    ledger.append(record("a"))
    assert synced == [json.dumps(seal(record("a"))) + "\n"]

    def fail(number):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ledger.append(record("b"))
    assert ledger.find("b", "trained") is None


def test_undefined_numbers_are_null_and_read_as_such(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    ledger.append(record("a", float("inf")))
    assert accuracy(ledger.get("a", "trained")) is None
    assert accuracy(Ledger(tmp_path / "results.jsonl").get("a", "trained")) is None


@pytest.mark.parametrize("content", [b"3.0\nnan\n", b"\xff", b"-1", b"three"])
def test_damaged_times_end_no_ablation(tmp_path, content, capsys):
    path = tmp_path / "seconds.txt"
    path.write_bytes(content)
    assert add_seconds(path, 2.0) == 2.0 and add_seconds(path, 1.0) == 3.0
    assert "the time of earlier calls is not counted" in capsys.readouterr().err
    path.unlink()
    path.mkdir()
    assert add_seconds(path, 2.0) == 2.0
