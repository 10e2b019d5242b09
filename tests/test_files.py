"""Small JSON files: the written content is read back, or a readable error is raised."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.errors import UserError
from finetune_jax.files import parse_json, plain, read_json, require_seal, seal, write_json
from finetune_jax.pretrained import save_native

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
_OBJECTS = st.dictionaries(st.text(min_size=1), _VALUES).filter(lambda x: "sha256" not in x)


@given(_OBJECTS)
def test_a_sealed_object_survives_the_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("sealed") / "x.json"
    write_json(path, seal(content))
    assert require_seal(read_json(path), "x") == plain(content)
    assert not path.with_name("x.json.tmp").exists()


@given(_OBJECTS, st.data())
def test_a_changed_object_loses_its_seal(content, data):
    sealed = seal(content)
    key = data.draw(st.sampled_from(sorted(sealed)))
    value = data.draw(_VALUES.filter(lambda x: plain(x) != sealed[key]))
    # 0 and 0.0, 1 and True are equal in Python and different in JSON.
    if json.dumps(plain(value)) == json.dumps(sealed[key]):
        return
    with pytest.raises(UserError, match="line 3: the content"):
        require_seal({**sealed, key: value}, "line 3")


def test_an_object_without_a_checksum_is_not_sealed():
    with pytest.raises(UserError, match="has no checksum"):
        require_seal({"a": 1}, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ('{"a": ', "not readable as JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not readable as JSON"),
    ],
)
def test_json_that_no_file_of_ours_holds_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_json(tmp_path / "x.json")


def test_numbers_that_json_lacks_are_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5]})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.5]}


@pytest.fixture
def umask():
    """Returns a function that sets the process's umask, which the end of the test restores."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("bits", [0o002, 0o027, 0o077])
def test_weight_files_follow_the_umask(tmp_path, umask, bits):
    umask(bits)
    for _ in range(2):  # a new file, and one that replaces another
        save_native(tmp_path / "w.safetensors", {"params": {"x": np.ones(2, np.float32)}}, {})
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o666 & ~bits


def test_every_file_of_a_run_follows_the_umask(short_run, off_umask):
    assert len(list(short_run.rglob("*"))) > 10
    assert off_umask(short_run) == []
