"""Arms that were recorded with other data or weights are not put into one table with new arms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune_jax.ablation import worker
from finetune_jax.ablation.arm import make_arm
from finetune_jax.ablation.arm_inputs import ArmInputs
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.provenance import config_hash
from finetune_jax.ablation.study import Study
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.progress import muted

STUDY = Study(
    rows=over("scheme", ["head", "last_k(1)"]),
    tune=over("optimizer.learning_rate", [0.01, 0.1]),
    search="grid(extend=0)",
    seeds=(0, 1),
)


class Quick:
    """A launcher whose arms end at once; counts the arms that it trains and scores."""

    def __init__(self):
        self.count = {"train": 0, "score": 0}

    def run(self, units, poll):
        for path in units:
            unit = json.loads(path.read_text())
            for arm in unit["arms"]:
                self.count[unit["what"]] += 1
                folder = Path(arm["folder"])
                if unit["what"] == "train":
                    worker.write_result(folder, {
                        "validation": {"accuracy": arm["config"]["optimizer"]["learning_rate"]},
                        "cost": None, "trainable_params": 1, "total_params": 2, "steps": 3,
                        "train_flops": 0.0, "seconds": 1.0,
                        "made_of": ArmInputs().of(arm["config"]),
                    })  # fmt: skip
                else:
                    scores = {"test": {"accuracy": 0.5, "n_scored": 10}, "others": {}}
                    worker.write_scores(folder, arm["asked"], scores)
            poll()


@pytest.fixture
def config(small_config, weights, tmp_path):
    """A config of which data and weights can be changed."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i:03d}.png")
    shutil.copy(weights, tmp_path / "w.safetensors")
    config = load_config(str(small_config))
    config.data.source = f"folder:{tmp_path}/photos"
    config.data.train, config.data.validation, config.data.test = "train", "validation", "test"
    config.pretrained.path = str(tmp_path / "w.safetensors")
    return config


def run(config, folder, study=STUDY, **options):
    launcher = Quick()
    with muted():
        outcome = Conductor(study, config, folder, launcher, **options).run({})
    return outcome, launcher.count


def flip(path, bit=1):
    content = bytearray(path.read_bytes())
    content[-1] ^= bit
    path.write_bytes(content)


CHANGES = {
    "weights": (lambda root: flip(root / "w.safetensors"), "weights: sha256"),
    "classes": (lambda root: (root / "photos/cat").rename(root / "photos/kat"), "'cat' -> 'kat'"),
    "images": (lambda root: (root / "photos/dog/003.png").unlink(), "removed: 'dog/003.png'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_and_weights_are_refused_and_can_be_accepted(config, tmp_path, change):
    outcome, count = run(config, tmp_path / "ablation")
    assert count == {"train": 6, "score": 4} and outcome.provenance["accepted"] == []
    act, message = CHANGES[change]
    act(tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        run(config, tmp_path / "ablation")
    assert "--accept_changed_data" in str(refused.value)

    # Accepted records are kept; arms without a record are trained on what is there now.
    wider = Study(**{**vars(STUDY), "seeds": (0, 1, 2)})
    outcome, count = run(config, tmp_path / "ablation", wider, accept_changed_data=True)
    assert count == {"train": 2, "score": 2}
    assert any(message in line for line in outcome.provenance["accepted"])
    # The first change stays accepted, but another change must be accepted again.
    _, count = run(config, tmp_path / "ablation", wider)
    assert count == {"train": 0, "score": 0}
    (tmp_path / "photos/dog/004.png").unlink()
    with pytest.raises(UserError, match=r"-> \d+ examples"):
        run(config, tmp_path / "ablation", wider)


def test_what_changes_while_an_ablation_runs_is_not_recorded(config, tmp_path):
    launcher = Quick()
    conductor = Conductor(STUDY, config, tmp_path / "ablation", launcher)
    flip(tmp_path / "w.safetensors")
    with muted(), pytest.raises(UserError, match="weights: sha256"):
        conductor.run({})
    assert not (tmp_path / "ablation/results.jsonl").exists()


def test_a_moved_home_runs_no_arm_again(config, tmp_path):
    run(config, tmp_path / "ablation")
    hash_before = config_hash(config)
    for name in ("photos", "w.safetensors", "ablation"):
        (tmp_path / "home").mkdir(exist_ok=True)
        shutil.move(tmp_path / name, tmp_path / "home" / name)
    config.data.source = f"folder:{tmp_path}/home/photos"
    config.pretrained.path = str(tmp_path / "home/w.safetensors")
    _, count = run(config, tmp_path / "home/ablation")
    assert count == {"train": 0, "score": 0} and config_hash(config) == hash_before


def test_files_of_one_name_are_not_one_arm(config, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "other/w.safetensors")
    flip(tmp_path / "other/w.safetensors")
    paths = [str(tmp_path / "w.safetensors"), str(tmp_path / "other/w.safetensors")]
    study = Study(**{**vars(STUDY), "rows": over("pretrained.path", paths), "seeds": (0,)})
    for trained in (2 * 2, 0):
        _, count = run(config, tmp_path / "ablation", study)
        assert count["train"] == trained
    flip(tmp_path / "w.safetensors", 2)
    with pytest.raises(UserError, match="weights: sha256"):
        run(config, tmp_path / "ablation", study)


def test_other_versions_are_reported(config, tmp_path, capsys, monkeypatch):
    run(config, tmp_path / "ablation")
    monkeypatch.setattr(
        "finetune_jax.ablation.recorded.versions", lambda: {"python": "9", "jax": "99"}
    )
    Conductor(STUDY, config, tmp_path / "ablation", Quick())
    printed = capsys.readouterr().err
    assert "10 records of this ablation are of other versions than now" in printed
    assert "-> 99" in printed


DAMAGE = {
    "edited": lambda path: path.write_text(
        path.read_text().replace(": 3", ": 4").replace(": 10", ": 11")
    ),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\xff\0"),
    "bare": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_of_arms_are_computed_again(config, tmp_path, damage):
    folder = tmp_path / "ablation"
    expected, _ = run(config, folder)
    (folder / "results.jsonl").unlink()
    results = [*folder.glob("runs/*/trained.json")][:2] + [*folder.glob("runs/*/scores_*.json")][:1]
    for path in results:
        DAMAGE[damage](path)
    outcome, count = run(config, folder)
    assert outcome.rows == expected.rows
    assert count["train"] >= 2 and count["score"] >= 1


def test_a_result_that_cannot_be_written_and_a_damaged_unit_are_reported(config, tmp_path):
    with pytest.raises(UserError, match="trained.json: cannot be written"):
        (tmp_path / "arm/trained.json").mkdir(parents=True)
        worker.write_result(tmp_path / "arm", {"steps": 3})
    arm = make_arm(config, "r", {}, {}, 0)
    unit = worker.train_unit([(tmp_path / "arm", arm.config)])
    (tmp_path / "unit.json").write_text(json.dumps({**unit, "arms": []}))
    with pytest.raises(UserError, match="unit.json: the content does not have its own checksum"):
        worker.run_unit(tmp_path / "unit.json")
