"""Sharded files: the index and its shards must agree, and stay in their folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from format_samples import ARRAYS, write_safetensors, write_sharded

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights

SUFFIXES = [".safetensors", ".bin"]


def rewrite(index, change) -> None:
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_index_that_differs_from_its_shards_is_refused(tmp_path, suffix):
    index = write_sharded(tmp_path / "a", suffix)
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    message = "the index differs from its shards"

    def lacks(weight_map):
        del weight_map["count"]

    def invents(weight_map):
        weight_map["new"] = shards[0]

    def swaps(weight_map):
        weight_map["count"] = shards[0]

    whole = index.read_text()
    for change, named in ((lacks, "'count'"), (invents, "'new'"), (swaps, "'count'")):
        index.write_text(whole)
        rewrite(index, change)
        with pytest.raises(UserError, match=f"{index}: {message}: .*{named}"):
            open_weights(index)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name",
    ["../x{}", "/etc/passwd", "a/b{}", "..", "", ".", "a\\b", "a\0b", 3, None, ["a"], "x" * 300],
)
def test_a_shard_is_the_plain_name_of_a_file_beside_the_index(tmp_path, suffix, name):
    index = write_sharded(tmp_path / "a", suffix)
    name = name.format(suffix) if isinstance(name, str) else name
    rewrite(index, lambda weight_map: weight_map.update(count=name))
    with pytest.raises(UserError, match="tensor 'count': expected the plain name"):
        open_weights(index)


def test_a_shard_may_not_be_a_link_out_of_the_folder(tmp_path):
    index = write_sharded(tmp_path / "a")
    shard = sorted(index.parent.glob("*.safetensors"))[0]
    elsewhere = shutil.move(shard, tmp_path / "elsewhere.safetensors")
    shard.symlink_to(elsewhere)
    with pytest.raises(UserError, match="link that leads out"):
        open_weights(index)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--owner--name"
    index = write_sharded(repository / "snapshots" / "0123")
    blobs = repository / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(index.parent.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    with open_weights(index.parent) as weights:
        np.testing.assert_array_equal(weights.read("count"), ARRAYS["count"])


def test_a_missing_shard_is_named(tmp_path):
    index = write_sharded(tmp_path / "a")
    sorted(index.parent.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="'model-00002-of-00002.safetensors' is missing") as error:
        open_weights(index)
    # Another shard is not the missing shard under another name.
    assert "Did you mean" not in str(error.value) and "(1 of 2)" in str(error.value)
    with pytest.raises(UserError, match="The folder has model-00001-of-00002") as error:
        open_weights(index.with_name("model-00002-of-00002.safetensors"))
    assert "Did you mean" not in str(error.value)
    index.unlink()
    (tmp_path / "b").mkdir()
    for i in (1, 2):
        name = f"model-0000{i}-of-00002.safetensors"
        write_safetensors(tmp_path / "b" / name, {"w": np.ones(2, np.float32)})
    with pytest.raises(UserError, match=r"are shards .*index.json\) is missing"):
        open_weights(tmp_path / "b")
    (tmp_path / "b" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"are shards .*index.json\) is missing"):
        open_weights(tmp_path / "b")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**5,
     '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "\ud800"],
)  # fmt: skip
def test_a_damaged_index_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=str(index)):
        open_weights(index)


def test_metadata_is_kept_and_a_name_given_twice_refused(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", {"w": np.ones(2, np.float32)})
    with open_weights(path) as weights:
        assert weights.metadata == {"format": "pt"}
    with open_weights(write_sharded(tmp_path / "b")) as weights:
        assert weights.metadata == {"format": "pt"}
    entry = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(UserError, match="'w' is given twice"):
        open_weights(path)
