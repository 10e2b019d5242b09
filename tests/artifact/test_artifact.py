"""Artifacts: predictions in batches of one program, and doors that the user must allow."""

import json
import sys

import jax
import numpy as np
import pytest
from commands import run_command

from finetune_jax import tree
from finetune_jax.artifact import Artifact, save_artifact
from finetune_jax.artifact.providers import config_doors, packages_of
from finetune_jax.config import default, to_json
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.errors import UserError
from finetune_jax.evaluation.averaging import combine
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.files import require_seal, seal
from finetune_jax.models import build, initialise
from finetune_jax.models.building import _entry_behind as entry_of_door
from finetune_jax.tasks import Classification

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIDE = 16
MODEL = {
    "family": "resnet_cifar", "name": "resnet20_cifar", "num_classes": len(CLASSES),
    "image_size": SIDE, "dtype": "float32", "head": "",
}  # fmt: skip


def saved(folder, name="resnet20_cifar", **changes):
    """An artifact of a random model of 16 pixels."""
    model = build(name, len(CLASSES), image_size=SIDE)
    save_artifact(
        folder,
        variables=jax.tree.map(np.asarray, initialise(model, SIDE, jax.random.key(0))),
        model=MODEL | {"name": name},
        deltas=(),
        task=Classification(CLASSES),
        preprocess=ImagePreprocess(SIDE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        plan={"scheme": "full", **changes},
        base={"file": None, "sha256": None},
        scores={},
        contents="all",
        changed=set(),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("saved") / "artifact")


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (side, 20, 3), dtype=np.uint8) for side in (16, 20, 24, 30, 40)]


def probabilities(results):
    return np.array([[r["probabilities"][name] for name in CLASSES] for r in results])


def test_predictions_do_not_depend_on_the_batch_size_and_keep_their_order(folder, images):
    artifact = Artifact.load(folder)
    inputs = np.stack([artifact.preprocess.host({"image": x})["image"] for x in images])
    logits = artifact.model.apply(artifact.variables, artifact.preprocess.device({"image": inputs}))
    expected = np.asarray(jax.nn.softmax(logits))
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # so that the test notices another order
    for size in (1, 2, 4, 5, 32):
        results = artifact.predict(images, batch_size=size)
        assert len(results) == 5
        np.testing.assert_allclose(probabilities(results), expected, atol=1e-5)
    assert artifact.predict([]) == []


def test_one_program_serves_all_batches_of_all_calls(folder, images):
    artifact = Artifact.load(folder)
    traced = []
    apply = artifact.model.apply

    class Traced:
        def apply(self, variables, x):
            traced.append(x.shape)
            return apply(variables, x)

    object.__setattr__(artifact, "model", Traced())
    artifact.predict(images, batch_size=2)
    artifact.predict(images[:4], batch_size=2)
    assert traced == [(2, SIDE, SIDE, 3)]
    # Few items are predicted one by one, so any number of them needs two programs.
    for count in (1, 2, 5, 8, 9, 31, 40, 3):
        assert len(artifact.predict([*images] * 8, batch_size=32)) == len(images) * 8
        assert len(artifact.predict(([*images] * 8)[:count], batch_size=32)) == count
    assert traced[1:] == [(32, SIDE, SIDE, 3), (1, SIDE, SIDE, 3)]


def test_files_arrays_and_examples_are_the_same_input(folder, images, tmp_path):
    from PIL import Image

    Image.fromarray(images[1]).save(tmp_path / "a.png")
    artifact = Artifact.load(str(folder))
    (pixels,) = artifact.predict([images[1]])
    exact = images[1] / 255
    nearly = np.clip((images[1] - 0.4) / 255, 0, 1)  # floats are rounded
    for item in (exact, exact.astype(np.float32), nearly, {"image": images[1]}):
        assert artifact.predict([item]) == [pixels]
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        (found,) = artifact.predict([path])
        assert found == {"image": str(path), **pixels}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"expected an image .* found the shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.int32), "found int32"),
        (np.full((4, 4, 3), 1.5), "found values from 1.5 to 1.5"),
        (np.full((4, 4, 3), -0.5), "in .0, 1."),
        (np.full((4, 4, 3), np.nan), "in .0, 1."),
    ],
)
def test_pixels_of_another_range_are_refused(folder, image, words):
    with pytest.raises(UserError, match=words):
        Artifact.load(folder).predict([image])


def test_a_batch_of_nothing_is_refused(folder, images):
    with pytest.raises(UserError, match="batch_size: expected a positive number, found 0"):
        Artifact.load(folder).predict(images, batch_size=0)


def test_an_artifact_without_doors_has_no_providers(folder):
    assert "providers" not in json.loads((folder / "artifact.json").read_text())


PACKAGE = """
from finetune_jax.models import build
from finetune_jax.models.registry import Entry, Inputs

MODEL = Entry(
    "resnet_cifar",
    lambda *, num_classes, **_: build("resnet20_cifar", num_classes, image_size=16),
    inputs=Inputs(16, crop=0), classes=0, labels="",
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package with a model, of which ``artifact`` beside it is made; not imported yet."""
    name = f"package_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    saved(tmp_path / "artifact", f"{name}:MODEL")
    monkeypatch.delitem(sys.modules, name)
    entry_of_door.cache_clear()
    return name


def changed(folder, change):
    """Writes another ``artifact.json``, with its checksum."""
    card = require_seal(json.loads((folder / "artifact.json").read_text()), "")
    change(card)
    (folder / "artifact.json").write_text(json.dumps(seal(card)))


def test_a_door_is_recorded_and_must_be_allowed(package, tmp_path, capsys):
    folder = tmp_path / "artifact"
    card = json.loads((folder / "artifact.json").read_text())
    assert card["providers"] == [{"door": f"{package}:MODEL", "package": package, "version": ""}]
    with pytest.raises(UserError, match=f"--allow_imports={package}"):
        Artifact.load(folder)
    with pytest.raises(UserError, match="--allow_imports"):
        Artifact.load(folder, allow_imports=["another_package"])
    assert package not in sys.modules
    artifact = Artifact.load(folder, allow_imports=[package])
    assert len(artifact.predict([np.zeros((16, 16, 3), np.uint8)])) == 1
    assert "recorded" not in capsys.readouterr().err
    Artifact.load(folder)  # the process has imported the package by now


def test_a_door_that_the_file_does_not_list_must_be_allowed_too(package, tmp_path):
    changed(tmp_path / "artifact", lambda card: card.pop("providers"))
    with pytest.raises(UserError, match=f"--allow_imports={package}"):
        Artifact.load(tmp_path / "artifact")


def test_another_version_of_a_package_is_reported(package, tmp_path, capsys):
    changed(tmp_path / "artifact", lambda card: card["providers"][0].update(version="1.2"))
    Artifact.load(tmp_path / "artifact", allow_imports=[package])
    said = capsys.readouterr().err
    assert f"recorded with {package} 1.2" in said
    assert f"{package} without a version is installed" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"model": MODEL | {"name": "no_such_package:MODEL"}},
        {"base": {"file": None, "name_map": "no_such_package:NAMES"}},
        {"task": {"name": "no_such_package:Task"}},
        {"task": {"name": "classification", "loss": "no_such_package:focal(gamma=2)"}},
        {"deltas": [{"kind": "no_such_package:Delta", "module": "stem"}]},
    ],
)
def test_no_door_is_imported_unasked(folder, tmp_path, changes):
    (tmp_path / "artifact.json").write_bytes((folder / "artifact.json").read_bytes())
    changed(tmp_path, lambda card: card.update(changes))
    with pytest.raises(UserError, match="whose code would run"):
        Artifact.load(tmp_path)


def test_the_doors_of_a_config_must_be_allowed_before_a_run_is_opened(tmp_path):
    config = default()
    assert config_doors(config) == () and packages_of(config) == set()
    config.data.source = "folder:no_such_folder"
    assert config_doors(config) == ()
    config.data.source = "no_such_package.data:birds:small"
    config.model.name, config.pretrained.name_map = "no_such_package:M", "no_such_package:NAMES"
    config.task.name, config.task.loss = "no_such_package:T", "no_such_package:focal(gamma=2)"
    assert config_doors(config) == (
        "no_such_package:M", "no_such_package:NAMES", "no_such_package:T", "no_such_package:focal",
        "no_such_package.data:birds",
    )  # fmt: skip
    with config.ignore_type():
        config.scheme = "another_package.schemes:top(2) + head"
    assert packages_of(config) == {"no_such_package", "another_package"}
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    with pytest.raises(UserError, match=r"config\.json needs 'no_such_package:M'"):
        open_run(tmp_path)
    with pytest.raises(UserError, match=r"config\.json needs"):
        combine([tmp_path, tmp_path], tmp_path / "out")


def test_the_doors_of_a_scheme_are_recorded_and_not_imported(tmp_path):
    scheme = {"door": "no_such_package:top", "package": "no_such_package", "version": "3"}
    folder = saved(tmp_path / "artifact", providers=[scheme])
    card = json.loads((folder / "artifact.json").read_text())
    assert [p["door"] for p in card["providers"]] == ["no_such_package:top"]
    assert Artifact.load(folder).task.class_names == CLASSES


def test_a_changed_leaf_is_refused(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    for name in ("artifact.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    path = next(p for p in tensors if p.endswith("kernel"))
    tensors[path] = tensors[path] + 1e-3
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="it was changed"):
        Artifact.load(tmp_path)
    del tensors[path]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{path}: expected .* found nothing"):
        Artifact.load(tmp_path)
    assert tree.fingerprint(Artifact.load(folder).variables)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("params", "head", "kernel"), np.nan, "params/head/kernel: 1 of 320 values are NaN"),
        (("batch_stats", "stem", "norm", "var"), -1.0, "stem/norm/var: 1 of 16 variances are neg"),
    ],
)
def test_bad_values_are_neither_written_nor_read(tmp_path, monkeypatch, path, value, message):
    original = initialise

    def spoilt(*args):
        variables = original(*args)
        leaf = variables
        for key in path[:-1]:
            leaf = leaf[key]
        leaf[path[-1]] = np.asarray(leaf[path[-1]]).copy()
        leaf[path[-1]].flat[0] = value
        return variables

    monkeypatch.setattr(sys.modules[__name__], "initialise", spoilt)
    with pytest.raises(UserError, match=f"the artifact is not written: .*{message}"):
        saved(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    # As an older version wrote it.
    with monkeypatch.context() as older:
        older.setattr("finetune_jax.artifact.folder.require_good_values", lambda *_: None)
        saved(tmp_path / "old")
    with pytest.raises(UserError, match=f"model.safetensors: .*{message}"):
        Artifact.load(tmp_path / "old")


def test_outputs_that_are_not_finite_are_refused_with_count_and_first_item(folder, images):
    artifact = Artifact.load(folder)
    artifact.variables["params"]["head"]["bias"] = np.full(5, 3e38, np.float32)
    artifact.variables["params"]["head"]["kernel"] = np.full((64, 5), 3e38, np.float32)
    with pytest.raises(UserError, match="for 5 of 5 inputs, the first is number 0; nothing"):
        artifact.predict(images, batch_size=2)


@pytest.mark.slow
def test_predict_prints_names_that_act_on_a_terminal_as_escapes(tmp_path):
    from PIL import Image

    folder = saved(tmp_path / "artifact")
    names = ["\x1b[2J\x1b[31mred", "two\nlines", "a\u202eb", "\x07", "e"]
    changed(folder, lambda card: card["task"].update(class_names=names))
    image = tmp_path / "a\x1b[31m.png"
    Image.new("RGB", (16, 16)).save(image)
    found = run_command("predict", f"--workdir={folder}", "--top=5", str(image))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 1 and found.stdout.rstrip("\n").isprintable()
    for text in (
        r"a\x1b[31m.png: ",
        r"\x1b[2J\x1b[31mred ",
        r"two\nlines ",
        r"a\u202eb ",
        r"\x07 ",
    ):
        assert text in found.stdout
