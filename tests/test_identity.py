"""The identity of a run's inputs: equal wherever the data is, and changes are named."""

import os
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from finetune_jax import identity
from finetune_jax.cli import load_config
from finetune_jax.config import default, difference, to_json
from finetune_jax.data.sources import open_source
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.mesh import put_batch
from finetune_jax.portable import portable
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import steps, train
from finetune_jax.training.shared import SharedCaches


def fill(root, classes=("cat", "dog"), count=20):
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")


def recolour(path):
    """Changes a pixel of an image, and keeps the size of the file and its time of change."""
    before = path.stat()
    content = path.read_bytes()
    for number in range(256):
        pixels = np.array(Image.open(path))
        pixels[0, 0] = number
        Image.fromarray(pixels).save(path)
        if path.stat().st_size == before.st_size and path.read_bytes() != content:
            break
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.read_bytes() != content


CHANGES = {
    "a class is renamed": (
        lambda root: (root / "cat").rename(root / "kat"), "classes: 'cat' -> 'kat'"),
    "images are removed": (
        lambda root: [(root / "dog" / f"00{i}.png").unlink() for i in range(3)],
        "3 files removed: 'dog/000.png', 'dog/001.png'"),
    "an image is added": (
        lambda root: shutil.copy(root / "cat/000.png", root / "cat/new.png"),
        "1 file added: 'cat/new.png'"),
    "an image is another one": (
        lambda root: recolour(root / "cat/003.png"), "the content of 'cat/003.png' changed"),
    "an image has another label": (
        lambda root: (root / "cat/005.png").rename(root / "dog/105.png"),
        "1 file removed: 'cat/005.png'"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_is_named(tmp_path, change):
    fill(tmp_path / "photos")
    before = open_source(f"folder:{tmp_path}/photos").identity
    act, message = CHANGES[change]
    act(tmp_path / "photos")
    lines = identity.differences(
        {"data": before}, {"data": open_source(f"folder:{tmp_path}/photos").identity}
    )
    assert any(message in line for line in lines), lines


def test_data_in_another_place_and_of_another_time_is_the_same(tmp_path):
    fill(tmp_path / "photos")
    before = open_source(f"folder:{tmp_path}/photos").identity
    shutil.copytree(tmp_path / "photos", tmp_path / "moved/pictures")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert open_source(f"folder:{tmp_path}/moved/pictures").identity == before


def test_a_table_is_known_by_its_content(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text("text,label\n" + "".join(
            f"text {i},{'xy'[i % 2]}\n" for i in range(20)))  # fmt: skip
    first, second = (open_source(f"csv:{tmp_path}/{x}/t.csv").identity for x in "ab")
    assert first == second and first["splits"] == {"train": 16, "validation": 2, "test": 2}
    table = tmp_path / "b/t.csv"
    table.write_text(table.read_text().replace("text 3", "text 4"))
    other = open_source(f"csv:{table}").identity
    assert identity.differences({"data": first}, {"data": other}) == [
        "data: the content of 't.csv' changed"
    ]


def test_many_files_are_known_by_a_sample_that_others_do_not_change(tmp_path):
    fill(tmp_path, ("cat",), 10)
    content = (tmp_path / "cat/000.png").read_bytes()
    for i in range(1000):
        (tmp_path / "cat" / f"more_{i}.png").write_bytes(content)
    before = open_source(f"folder:{tmp_path}").identity
    assert len(before["content"]) == 64 and before["files"] == 1010
    (tmp_path / "cat/more_7.png").unlink()
    after = open_source(f"folder:{tmp_path}").identity
    assert len(before["content"].keys() & after["content"].keys()) >= 63
    assert "1 file removed: 'cat/more_7.png'" in str(
        identity.differences({"data": before}, {"data": after})
    )


def test_values_of_an_edited_file_are_compared_without_a_traceback():
    data = {"classes": ["a"], "splits": {"train": 1}, "content": {}}
    for other in (None, [], 3, {"classes": 3}, {"classes": [3]}, {"splits": []}, {"content": 1}):
        assert identity.differences({"data": data}, {"data": other})
        assert identity.differences({"data": other}, {"data": data})


def test_other_tokenizers_teachers_and_class_names_are_reported(short_run, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    shutil.copytree(short_run / "artifact", tmp_path / "teacher/artifact")
    config = load_config("quickstart")
    config.pretrained.class_names = str(tmp_path / "names.txt")

    def found(tokenizer):
        setup = types.SimpleNamespace(
            config=config,
            source=open_source("digits"),
            preprocess=TextPreprocess(tokenizer, 8),
            task=types.SimpleNamespace(teacher=str(tmp_path / "teacher")),
        )
        return identity.made_of(setup, "0" * 64)

    before = found("one")
    assert identity.differences(before, found("one")) == []
    # Scores and versions of a teacher do not change its identity; its weights do.
    card = tmp_path / "teacher/artifact/artifact.json"
    content = read_json(card)
    write_json(card, {**content, "scores": {}, "made_of": {}})
    assert identity.digests(found("one")) == identity.digests(before)
    write_json(card, {**content, "fingerprint": "0"})
    (tmp_path / "names.txt").write_text("b\na\n")
    lines = identity.differences(before, found("two"))
    assert [line.split(":")[0] for line in lines] == ["tokenizer", "weights", "teacher"]
    assert set(identity.digests(before)) == set(identity.PARTS)


@pytest.fixture
def photos_config(small_config, tmp_path):
    """A config of a run on a folder of images."""
    fill(tmp_path / "photos")
    config = load_config(str(small_config))
    config.scheme = "head"
    config.data.source = f"folder:{tmp_path}/photos"
    config.data.train, config.data.validation, config.data.test = "train", "validation", "test"
    config.eval.batch_size = config.train.batch_size = 8
    config.train.steps = 4
    return config


def begin(config, workdir, count):
    """Trains `count` steps, as if the process ended then."""
    setup = open_setup(config)
    run = steps(setup, workdir, SharedCaches())
    request = next(run)
    for _ in range(count):
        batch = put_batch(request.batch, setup.mesh)
        request = run.send(request.step(request.state, request.frozen, batch))
    run.close()


def test_a_run_goes_on_with_its_own_data_only(photos_config, tmp_path):
    photos, workdir = tmp_path / "photos", tmp_path / "run"
    begin(photos_config, workdir, 2)
    # Data in another folder is the same data.
    photos.rename(tmp_path / "x")
    (tmp_path / "home").mkdir()
    (tmp_path / "x").rename(tmp_path / "home/photos")
    photos_config.data.source = f"folder:{tmp_path}/home/photos"
    begin(photos_config, workdir, 1)

    (tmp_path / "home/photos/cat").rename(tmp_path / "home/photos/kat")
    with pytest.raises(UserError, match=r"at step 3 was made from other inputs") as refused:
        train(open_setup(photos_config), workdir)
    assert "classes: 'cat' -> 'kat'" in str(refused.value)
    assert "--accept_changed_data" in str(refused.value)

    train(open_setup(photos_config), workdir, accept_changed_data=True)
    card = read_json(workdir / "artifact/artifact.json")
    (accepted,) = card["accepted"]
    assert accepted["step"] == 3 and "'cat' -> 'kat'" in str(accepted["changes"])
    assert card["made_of"]["data"]["classes"] == ["dog", "kat"]
    assert card["made_of"]["versions"]["jax"]


def test_other_weights_and_other_versions_are_reported(photos_config, weights, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    shutil.copy(weights, path)
    photos_config.pretrained.path = str(path)
    begin(photos_config, tmp_path / "run", 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights: sha256"):
        train(open_setup(photos_config), tmp_path / "run")
    shutil.copy(weights, path)
    identity.versions.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_jax.__version__", "9.9")
        begin(photos_config, tmp_path / "run", 1)
    identity.versions.cache_clear()
    assert "other versions than up to step 1: finetune_jax 0.1.0 -> 9.9" in capsys.readouterr().err


def test_scores_on_changed_data_are_reported(photos_config, tmp_path, capsys):
    from finetune_jax.evaluation.evaluator import open_run

    photos_config.train.steps = 1
    train(open_setup(photos_config), tmp_path / "run")
    open_run(tmp_path / "run")
    assert "is not the data" not in capsys.readouterr().err
    recolour(tmp_path / "photos/dog/004.png")
    open_run(tmp_path / "run")
    assert "the content of 'dog/004.png' changed" in capsys.readouterr().err


def test_a_key_that_changes_no_result_makes_no_other_config():
    one, other = default(), default()
    other.data.workers, other.data.data_dir, other.prefix_cache.dir = 2, "/data", "/cache"
    assert not difference(portable(to_json(one)), portable(to_json(other)))
    other.data.split_seed = 1
    assert difference(portable(to_json(one)), portable(to_json(other))) == [
        "data.split_seed: 0 -> 1"
    ]


def test_a_new_class_is_reported_as_other_data_and_not_as_another_plan(photos_config, tmp_path):
    workdir = tmp_path / "run"
    begin(photos_config, workdir, 2)
    shutil.copytree(tmp_path / "photos/cat", tmp_path / "photos/emu")
    with pytest.raises(UserError, match=r"was made from other inputs[^!]*classes: none -> 'emu'"):
        train(open_setup(photos_config), workdir)
    with pytest.raises(UserError, match="was written under another plan"):
        train(open_setup(photos_config), workdir, accept_changed_data=True)
