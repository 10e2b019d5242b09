"""What lies around a command: settings of JAX, names of files here, places of folders, archives."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_jax import cli, settings
from finetune_jax.artifact.items import prediction_inputs
from finetune_jax.data.source_hf import open_ as open_hf
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import load_predictions
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.load import _reparametrized
from finetune_jax.run_folders import no_run
from finetune_jax.training.folder import _moved, require_apart


@pytest.mark.parametrize(
    ("name", "given", "usual"),
    [
        ("jax_numpy_rank_promotion", "raise", "allow"),
        ("jax_numpy_dtype_promotion", "strict", "standard"),
        ("jax_disable_jit", "1", False),
    ],
)
def test_strict_settings_of_jax_are_set_back_and_said(monkeypatch, capsys, name, given, usual):
    before = getattr(jax.config, name)
    monkeypatch.setenv(name.upper(), given)
    jax.config.update(name, True if given == "1" else given)
    try:
        settings.without_strictness()
        assert getattr(jax.config, name) == usual and name.upper() not in os.environ
        assert f"{name.upper()}={given} has no effect here" in capsys.readouterr().err
        monkeypatch.setenv(name.upper(), str(usual))
        settings.without_strictness()
        assert not capsys.readouterr().err
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize("name", ["random.py", "datasets.py", "numpy/__init__.py"])
def test_a_file_here_that_hides_a_module_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "tokenizers").mkdir()  # Python prefers the library to a folder without code
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_jax.train"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    hidden = name.split("/")[0]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"error: {hidden} in the current folder hides Python's module" in ended.stderr


def test_a_folder_called_datasets_is_no_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("datasets").mkdir()
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="the folder datasets/ here is not this library"):
        open_hf("hf:imdb", "imdb", Options())
    sys.modules.pop("datasets", None)


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://b/r", "file:///tmp/x"])
def test_an_address_is_no_folder(path):
    with pytest.raises(UserError, match="an address; expected a folder"):
        cli.require_no_address(path, "--workdir")
    cli.require_no_address("runs/a:b//c", "--workdir")


def test_what_a_config_prints_is_no_result(tmp_path, capsys):
    file = tmp_path / "c.py"
    file.write_text(
        "from finetune_jax.config import default\nprint('hello')\n"
        "def get_config():\n    print('again')\n    return default()\n"
    )
    cli.load_config(str(file))
    said = capsys.readouterr()
    assert said.out == "" and said.err.split() == ["hello", "again"]


def test_runs_are_not_written_among_the_classes_of_a_folder(tmp_path):
    for workdir in (tmp_path / "photos", tmp_path / "photos" / "train" / "run"):
        with pytest.raises(UserError, match="lies in the folder of the data"):
            require_apart(workdir, f"folder:{tmp_path / 'photos'}")
    require_apart(tmp_path / "photos_run", f"folder:{tmp_path / 'photos'}")
    require_apart(tmp_path / "run", f"csv:{tmp_path}/a.csv")


def test_moved_files_of_a_run_are_answered_with_a_link(tmp_path):
    (tmp_path / "new").mkdir()
    old, new = ({"data": {"source": f"folder:{tmp_path / n}"}} for n in ("old", "new"))
    assert f"ln -s {tmp_path}/new {tmp_path}/old" in _moved(old, new)
    assert not _moved(new, old) and not _moved(new, new)
    weights = [{"pretrained": {"path": str(tmp_path / n)}} for n in ("w", "new")]
    assert f"ln -s {tmp_path}/new {tmp_path}/w" in _moved(*weights)


def test_an_archive_and_a_table_in_place_of_a_run_are_named(tmp_path):
    (tmp_path / "art.zip").write_bytes(b"PK")
    assert "art.zip is an archive: unpack it" in no_run(tmp_path / "art.zip")
    (tmp_path / "p.csv").write_text("image,prediction\n")
    with pytest.raises(UserError, match="tables of `predict` have no labels") as error:
        load_predictions(tmp_path / "p.csv")
    assert "pickle" not in str(error.value)


def test_a_list_of_images_is_for_standard_input(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    images = SimpleNamespace(kind="image", columns=("image",))
    with pytest.raises(UserError, match=r"predict … - < .*list\.txt"):
        prediction_inputs([str(tmp_path / "list.txt")], images)


def test_a_cache_of_the_hub_is_answered_with_its_revision(tmp_path):
    for name in ("abc", "zzz"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="/snapshots/zzz"):
        open_weights(tmp_path)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("abc")
    with pytest.raises(UserError, match="/snapshots/abc"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
def test_a_plain_pickle_is_answered_with_a_conversion_that_works(tmp_path, monkeypatch, name):
    import pickle

    monkeypatch.chdir(tmp_path)
    values = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    Path(name).write_bytes(pickle.dumps({"model": values, "__author__": "x"}, protocol=2))
    with pytest.raises(UserError) as error:
        open_weights(Path(name))
    Path("FILE.pkl").write_bytes(Path(name).read_bytes())
    code = str(error.value).split('-c "')[1].split('"')[0]
    exec(code, {})
    with open_weights(Path("FILE.npz")) as weights:
        np.testing.assert_array_equal(weights.read("conv.weight"), values["conv.weight"])


def test_an_index_of_another_version_says_what_to_do(tmp_path):
    for number in (1, 2):
        save_file(
            {f"t{number}": np.ones(1), "old": np.ones(1)}, tmp_path / f"m-{number}-of-2.safetensors"
        )
    names = {"t1": "m-1-of-2.safetensors", "t2": "m-2-of-2.safetensors"}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="get index and shards again, into a new folder"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("conv1.parametrizations.weight.original0", "remove_parametrizations"),
        ("conv1.weight_g", "remove_weight_norm"),
        ("fc.weight_orig", "remove_spectral_norm"),
        ("fc.weight_mask", "prune.remove"),
    ],
)
def test_parts_of_a_weight_are_answered_with_the_call_that_joins_them(name, call):
    assert call in _reparametrized(["bn.other", name])
    assert _reparametrized(["bn.other", "weight_gain", "my_weight_g.bias"]) == ""
