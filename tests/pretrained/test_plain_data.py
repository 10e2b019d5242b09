"""Objects that training scripts pickle beside tensors are read as plain data; no code runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from torch_writer import tensor, write_legacy, write_zip

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights
from finetune_jax.pretrained.formats.plain_data import PlainData
from finetune_jax.pretrained.formats.torch_pickle import load_pickle


class Exotic:
    """Pickles as an instance of a class of another package, which is not installed."""

    def __init__(self, module, name, **fields):
        self.place, self.fields = (module, name), fields

    def __reduce__(self):
        module, name = self.place
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(parts[end - 1]))
        if not hasattr(sys.modules[module], name):
            made = type(name, (dict,), {"__module__": module, "__qualname__": name})
            setattr(sys.modules[module], name, made)
        return getattr(sys.modules[module], name), (), self.fields


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data"), gpu=None),
    "simple": types.SimpleNamespace(epochs=3),
    "default": collections.defaultdict(list, {"loss": [1.0, 0.5]}),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2], maxlen=5),
    "ordered": collections.OrderedDict(a=1),
    "date": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
    "delta": datetime.timedelta(seconds=3),
    "path": pathlib.Path("runs/x"),
    "scalar": np.float64(76.1),
    "array": np.arange(3),
    "dtype": np.dtype(np.float32),
    "number type": np.float32,
    "set": {1, 2},
    "frozen": frozenset({1}),
    "complex": 1j,
    "range": range(3),
    "slice": slice(1, 2),
    "bytes": bytearray(b"xy"),
    "easydict": Exotic("easydict", "EasyDict", lr=1),
    "omegaconf": Exotic("omegaconf.dictconfig", "DictConfig", _content={"lr": 1}),
    "lightning": Exotic("pytorch_lightning.utilities.parsing", "AttributeDict", lr=1),
    "yacs": Exotic("yacs.config", "CfgNode", lr=1),
}


@pytest.fixture(autouse=True)
def _modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("easydict", "omegaconf", "pytorch_lightning", "yacs"):
            del sys.modules[name]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_everything_beside_the_tensors_is_read(tmp_path, write):
    path = tmp_path / "w.pth"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write(path, {"args": BESIDE, **BESIDE, "state_dict": {"w": tensor("0", values)}})
    for module in [m for m in sys.modules if m.startswith(("easydict", "omegaconf", "yacs"))]:
        del sys.modules[module]
    with open_weights(path) as weights:
        np.testing.assert_array_equal(weights.read("w"), values)
        assert weights.names() == ("w",) and len(weights.other_entries) == len(BESIDE) + 1
    assert "easydict" not in sys.modules and "omegaconf.dictconfig" not in sys.modules


@pytest.mark.parametrize("protocol", range(5))
def test_each_object_keeps_its_content_in_every_protocol(protocol):
    found = {}
    for name, value in BESIDE.items():
        program = pickle.dumps({name: value, "after": 7}, protocol=protocol)
        content = load_pickle(io.BytesIO(program))
        assert content["after"] == 7, name
        found[name] = content[name]
    assert found["namespace"]["lr"] == 0.1 and found["namespace"]["gpu"] is None
    assert isinstance(found["namespace"]["data"], PlainData)
    assert found["simple"] == found["simple"] and dict(found["simple"]) == {"epochs": 3}
    assert dict(found["default"]) == {"loss": [1.0, 0.5]}
    assert dict(found["counter"]) == {"a": 2, "b": 1, "c": 1}
    assert found["deque"]["items"] == [1, 2]
    assert dict(found["yacs"]) == {"lr": 1}


def test_a_state_dict_in_a_default_dict_or_namespace_is_found(tmp_path):
    values = np.ones(2, np.float32)
    for i, held in enumerate((
        collections.defaultdict(dict, {"model": {"w": tensor("0", values)}}),
        argparse.Namespace(model={"w": tensor("0", values)}),
    )):  # fmt: skip
        write_legacy(tmp_path / f"{i}.pt", held)
        with open_weights(tmp_path / f"{i}.pt") as weights:
            np.testing.assert_array_equal(weights.read("w"), values)


@pytest.mark.parametrize(
    "name",
    [b"os\nsystem", b"builtins\neval", b"__builtin__\n__import__", b"posix\nsystem",
     b"omegaconf\nos.system", b"argparse\nArgumentParser", b"numpy\nload", b"pathlib\nos",
     b"__main__\nConfig", b"torchvision.models.resnet\nResNet", b"functools\npartial"],
)  # fmt: skip
def test_other_names_are_refused_before_anything_is_imported(tmp_path, name):
    program = b"\x80\x02}X\x01\x00\x00\x00ac" + name + b"\n)Rs."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError, match=r"its pickle asks for .* pickled code is never run"):
        open_weights(tmp_path / "w.pt")


def test_tensors_of_other_kinds_are_named(tmp_path):
    program = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_qtensor\n)Rs."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError, match="a kind that is not read .*quantized"):
        open_weights(tmp_path / "w.pt")


def test_checkpoints_of_other_frameworks_are_named(tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(b"x")
    with pytest.raises(UserError, match="prefix of a TensorFlow checkpoint"):
        open_weights(tmp_path / "model.ckpt")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(UserError, match="dcp_to_torch_save"):
        open_weights(tmp_path / "dcp")
    (tmp_path / "w.tar").write_bytes(bytes(257) + b"ustar" + bytes(250))
    with pytest.raises(UserError, match="a tar archive: unpack it first"):
        open_weights(tmp_path / "w.tar")


def test_stand_ins_have_no_attributes_to_set(tmp_path):
    # GLOBAL, then BUILD with slot state: setattr on the class that `find_class` returned.
    state = b"N}U\x0c__setstate__K\x01s\x86b"
    program = b"\x80\x02cargparse\nNamespace\n" + state + b"."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError):
        open_weights(tmp_path / "w.pt")
    assert callable(PlainData.__setstate__)
