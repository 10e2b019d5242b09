"""Cached activations on disk: damage is found, removed and never used for training."""

import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
from small_runs import config_of

from experiments.faults.campaign import damage_one
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, seal, write_json
from finetune_jax.setup import open_setup
from finetune_jax.training.activation_folder import ActivationFolder, make_room
from finetune_jax.training.loop import train

SHAPE = jax.ShapeDtypeStruct((16,), np.float32)
VALUES = np.arange(20 * 16, dtype=np.float32).reshape(20, 1, 16)
TARGETS = {"label": np.arange(20)}


@pytest.fixture
def folder(tmp_path):
    folder = ActivationFolder(tmp_path / "cache" / ("a" * 32), SHAPE, 1)
    folder.write([(0, VALUES[:16]), (16, VALUES[16:])], TARGETS, {"bytes": VALUES.nbytes})
    return folder


def test_what_is_written_is_read(folder, off_umask):
    assert folder.damage() == ""
    assert off_umask(folder.path) == []
    order = np.array([3, 19, 0])
    np.testing.assert_array_equal(folder.reader()(order), VALUES[order, 0])
    np.testing.assert_array_equal(folder.targets()["label"], TARGETS["label"])


def test_random_damage_is_found_or_changes_nothing(folder, rng):
    before = folder.path.with_name("before")
    shutil.copytree(folder.path, before)
    found = 0
    for _ in range(60):
        folder.remove()
        shutil.copytree(before, folder.path)
        damage_one(folder.path, rng)
        if folder.damage():
            found += 1
            continue
        np.testing.assert_array_equal(folder.reader()(np.arange(20)), VALUES[:, 0])
        np.testing.assert_array_equal(folder.targets()["label"], TARGETS["label"])
    assert found > 30


def test_records_of_another_folder_are_no_records(folder):
    other = ActivationFolder(folder.path.with_name("b" * 32), SHAPE, 1)
    other.write([(0, VALUES + 1)], TARGETS, {"bytes": VALUES.nbytes})
    shutil.copy(other.path / "activations", folder.path / "activations")
    assert "record 0 does not have its checksum" in folder.damage()


def test_damage_after_the_opening_is_refused_at_the_read(folder):
    other = ActivationFolder(folder.path.with_name("b" * 32), SHAPE, 1)
    other.write([(0, VALUES + 1)], TARGETS, {"bytes": VALUES.nbytes})
    file, read = folder.path / "activations", folder.reader()
    for content in (file.read_bytes()[:500], (other.path / "activations").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="activations: .*repeat the command") as error:
            read(np.arange(20))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("meta", ["", "{", "[1]", "{}", '{"bytes": "x"}', '{"bytes": null}'])
def test_room_is_made_beside_damaged_and_foreign_folders(folder, meta):
    parent = folder.path.parent
    damaged = parent / ("c" * 32)
    damaged.mkdir()
    (damaged / "meta.json").write_text(meta)
    os.utime(damaged / "meta.json", (0, 0))
    os.utime(damaged, (0, 0))
    foreign = parent / "mine"
    foreign.mkdir()
    (foreign / "meta.json").write_text('{"bytes": 1}')
    for name, age in ((".half-old", 2 * 24 * 3600), (".half-new", 60)):
        (parent / name).mkdir()
        os.utime(parent / name, (time.time() - age,) * 2)
    make_room(parent, VALUES.nbytes)
    left = {path.name for path in parent.iterdir()} - {damaged.name}
    assert left == {folder.path.name, "mine", ".half-new"}
    make_room(parent, 0)
    assert {path.name for path in parent.iterdir()} == {"mine", ".half-new"}


@pytest.mark.slow
def test_a_damaged_entry_is_computed_anew_and_reported_once(weights, tmp_path, capsys):
    cache = tmp_path / "cache"
    options = {"prefix_cache__dir": str(cache), "prefix_cache__bytes": 0, "train__steps": 4}
    setup = open_setup(config_of(weights, "head", **options))

    def run(name):
        train(setup, tmp_path / name)
        artifact = read_json(tmp_path / name / "artifact" / "artifact.json")
        return artifact["fingerprint"], capsys.readouterr().err

    expected, _ = run("first")
    train_entry, validation = sorted(
        cache.iterdir(), key=lambda e: read_json(e / "meta.json")["split"]
    )
    meta = json.loads((train_entry / "meta.json").read_text())
    del meta["sha256"]
    write_json(train_entry / "meta.json", seal({**meta, "records": 31}))
    (validation / "meta.json").unlink()
    found, said = run("second")
    assert found == expected
    assert said.count("is damaged, removed and computed anew") == 2
    assert "expected 31 records, found 32" in said
    found, said = run("third")
    assert found == expected and said.count("found in") == 2


def test_an_entry_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    folder = ActivationFolder(tmp_path / "file" / ("a" * 32), SHAPE, 1)
    with pytest.raises(UserError, match=r"prefix_cache\.dir: .* cannot be written"):
        folder.write([(0, VALUES)], TARGETS, {"bytes": VALUES.nbytes})
