"""Flax msgpack files, Orbax folders and artifacts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest
from format_samples import ARRAYS, flax_extension, write_msgpack, write_orbax

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights

PAIR = np.arange(2, dtype=np.float32)


def pack(path: Path, content: object) -> Path:
    path.write_bytes(msgpack.packb(content, default=flax_extension))
    return path


def array_extension(shape, dtype, values: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, values)))


def test_flax_writes_what_is_read(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    content = {"params": {"layers": [PAIR, (PAIR * 2,)], "scalar": np.float32(3)}, "step": 7}
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(content))
    with open_weights(tmp_path / "a.msgpack") as weights:
        assert weights.names() == ("params/layers/0", "params/layers/1/0", "params/scalar")
        assert weights.other_entries == ("step",)
        np.testing.assert_array_equal(weights.read("params/layers/1/0"), PAIR * 2)
        assert weights.read("params/scalar") == np.float32(3)


def test_arrays_in_chunks_are_put_together(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes({"w": whole}))
    with open_weights(tmp_path / "a.msgpack") as weights:
        assert weights.spec("w") == ((3, 4, 5), np.dtype(np.float32))
        np.testing.assert_array_equal(weights.read("w"), whole)


def test_an_optimizer_and_what_is_no_array_stand_beside(tmp_path):
    content = {
        "params": {"w": PAIR},
        "opt_state": {"0": {"mu": PAIR}},
        "c": 1j,
        "n": None,
        "b": b"",
    }
    with open_weights(pack(tmp_path / "a.msgpack", content)) as weights:
        assert weights.names() == ("params/w",)
        assert weights.other_entries == ("opt_state/0/mu", "c", "n", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": array_extension((2**40,), "float32", b"")}, r"declares float32\[1099511627776\]"),
        ({"w": array_extension((2,), "float32", b"1234")}, "has 4 bytes"),
        ({"w": array_extension((1,), "object", b"12345678")}, "dtype 'object'"),
        ({"w": array_extension((1,), "O", b"12345678")}, "dtype 'O'"),
        ({"w": array_extension((-1,), "float32", b"")}, "no count"),
        ({"w": array_extension((0, 2**62, 8), "float32", b"")}, "beyond all memory"),
        ({"w": array_extension(("a",), "float32", b"1234")}, "no count"),
        ({"w": array_extension(None, "float32", b"1234")}, "no shape"),
        ({"w": msgpack.ExtType(1, b"\x93")}, "truncated"),
        ({"w": msgpack.ExtType(5, b"cbuiltins\nexec\n")}, "extension of type 5"),
        ({"a": {"b": PAIR}, "a/b": PAIR}, "two entries have the name 'a/b'"),
        ([PAIR] * 2 + [[[PAIR]]] * 3, None),
        (PAIR, "nested dicts"),
        (
            {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": PAIR}}},
            "chunks of 2 elements",
        ),
        ({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 2}}}, "without their shape"),
    ],
)
def test_a_hostile_msgpack_file_is_refused(tmp_path, content, message):
    path = pack(tmp_path / "a.msgpack", content)
    if message is None:
        with open_weights(path) as weights:
            assert len(weights.names()) == 5
        return
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        open_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xdf\xff\xff\xff\xff", "fewer bytes than entries"),
        (b"\xdd\xff\xff\xff\xff", "fewer bytes than entries"),
        (b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", "exceeds the end"),
        (b"\x81\xa1w\xdb\xff\xff\xff\xff", "exceeds the end"),
        (b"\x81\xa1w" * 200, "nested deeper"),
        (b"\x82\xa1w\x01\xa1w\x02", "given twice"),
        (b"\x81\xc0\x01", "no text"),
        (b"\x81\xa1w\xc1", "with which no value begins"),
        (b"\x81\xa1w\x01extra", "bytes follow"),
    ],
)
def test_lengths_in_a_msgpack_file_are_not_believed(tmp_path, content, message):
    path = tmp_path / "a.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_weights(path)


def test_a_steps_folder_and_a_managers_folder(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 12):
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave({"params": {"w": PAIR}, "opt_state": [PAIR], "n": 3}),
                meta=ocp.args.JsonSave({"a": 1}),
            )
            manager.save(step, args=arguments)
    with open_weights(tmp_path / "run" / "5") as weights:
        assert weights.names() == ("n", "params/w")
        assert weights.other_entries == ("opt_state/0",)
        np.testing.assert_array_equal(weights.read("params/w"), PAIR)
    with pytest.raises(UserError, match="found the steps 5, 12; name one of them"):
        open_weights(tmp_path / "run")


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_damaged_orbax_folder_is_refused(tmp_path):
    folder = write_orbax(tmp_path / "good", use_ocdbt=False)
    damaged = tmp_path / "bad"

    def refuse(message: str, how) -> None:
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        how()
        with pytest.raises(UserError, match=f"{damaged}.*{message}"), open_weights(damaged) as w:
            [w.read(name) for name in w.names()]

    array = damaged / "params.kernel" / ".zarray"
    refuse("file can hold at most", lambda: change(array, shape=[2**40], chunks=[1]))
    refuse("file can hold at most", lambda: change(array, chunks=[2**20, 2**20, 2**20]))
    refuse("'params/kernel'", lambda: array.unlink())
    refuse("'params/kernel'", lambda: change(array, dtype="|O"))
    refuse("'params/kernel'", lambda: next(array.parent.glob("0*")).write_bytes(b"no zstd"))
    refuse("JSON", lambda: (damaged / "_METADATA").write_text("{"))
    refuse("tree_metadata", lambda: (damaged / "_METADATA").write_text("{}"))
    outside = {
        "('x',)": {
            "key_metadata": [{"key": "x/../../good/count", "key_type": 2}],
            "value_metadata": {"value_type": "jax.Array"},
        }
    }
    refuse("outside of the folder", lambda: change(damaged / "_METADATA", tree_metadata=outside))


def test_an_artifact_opens_by_our_names_and_a_delta_names_its_base(tmp_path):
    from finetune_jax.pretrained import save_native

    params = {"params": {"head": {"bias": PAIR}}, "batch_stats": {}}
    folder = tmp_path / "run" / "artifact"
    folder.mkdir(parents=True)
    save_native(folder / "model.safetensors", params, {})
    card = folder / "artifact.json"
    card.write_text(json.dumps({"contents": "all"}))
    for place in (folder, folder.parent):
        with open_weights(place) as weights:
            assert weights.names() == ("params/head/bias",)
    card.write_text(json.dumps({"contents": "delta", "base": {"file": "base.th", "sha256": "ab"}}))
    with pytest.raises(UserError, match="differs from its base 'base.th' .SHA-256 'ab'"):
        open_weights(folder)
    for text in ("{}", "[]", "{", "[" * 10**5, '{"contents": "all", "contents": "all"}'):
        card.write_text(text)
        with pytest.raises(UserError, match=str(card)):
            open_weights(folder)


def test_the_samples_arrays_survive_an_optimizer_beside_them(tmp_path):
    with open_weights(write_msgpack(tmp_path / "a.msgpack")) as weights:
        assert set(weights.names()) == set(ARRAYS)
