"""An interrupted group of arms continues with the programs and at the steps that it had."""

import shutil
from pathlib import Path

import pytest
from small_runs import config_of

from finetune_jax.files import read_json
from finetune_jax.setup import open_setup
from finetune_jax.training import arm_group, fused_step
from finetune_jax.training.arm_group import GroupRecord, go_back_to_common_step
from finetune_jax.training.arms import run_arms
from finetune_jax.training.checkpoint_folder import steps_in
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.metrics_writer import rows_without_times

STEPS = 4
METRICS = "metrics.jsonl"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def setups(weights):
    return [
        open_setup(config_of(weights, "head", seed=s, train__steps=STEPS, data__train="train[:48]"))
        for s in range(3)
    ]


@pytest.fixture(scope="module")
def whole(setups, tmp_path_factory):
    """Folders of arms that were never interrupted and trained as one program."""
    folder = tmp_path_factory.mktemp("whole")
    folders = [folder / str(i) for i in range(len(setups))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_step.FusedStep, "_measure", lambda self, requests: True)
        run_arms(setups, folders)
    return folders


def kill_at_save(monkeypatch, number):
    """Raises `Killed` after a save, counted over all arms from 1; the save is complete."""
    saves, save = [], Checkpoints.save

    def counted(self, *arguments):
        save(self, *arguments)
        saves.append(self)
        if len(saves) == number:
            for checkpoints in saves:
                checkpoints.wait()
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", counted)


@pytest.mark.parametrize(
    "saves, damaged",
    [
        (1, False),
        *(pytest.param(n, False, marks=pytest.mark.slow) for n in (3, 5, 7, 3 * STEPS - 1)),
        *(pytest.param(n, True, marks=pytest.mark.slow) for n in (6, 8)),
    ],
)
def test_a_killed_group_continues_to_the_same_bits(setups, whole, tmp_path, saves, damaged):
    """The kill is between two saves; the newest checkpoint of one arm may be damaged as well."""
    folders = [tmp_path / folder.name for folder in whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_step.FusedStep, "_measure", lambda self, requests: True)
        kill_at_save(patch, saves)
        with pytest.raises(Killed):
            run_arms(setups, folders)
    if damaged:
        checkpoints = folders[1] / "checkpoints"
        newest = checkpoints / str(steps_in(checkpoints)[-1])
        largest = max(filter(Path.is_file, newest.rglob("*")), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_step.FusedStep, "_measure", lambda *_: pytest.fail("measured again"))
        run_arms(setups, folders)
    for ours, theirs in zip(folders, whole, strict=True):
        assert rows_without_times(ours / METRICS) == rows_without_times(theirs / METRICS)
        cards = [read_json(path / "artifact" / "artifact.json") for path in (ours, theirs)]
        assert cards[0]["fingerprint"] == cards[1]["fingerprint"]
    assert (folders[1] / "damaged_checkpoints").exists() == damaged


@pytest.mark.slow
def test_an_arm_ends_when_all_arms_have_saved_their_last_step(setups, whole, tmp_path):
    folders = [tmp_path / folder.name for folder in whole]

    def ended(number, result):
        assert [steps_in(path / "checkpoints")[-1] for path in folders] == [STEPS] * 3
        raise Killed

    with pytest.raises(Killed):
        run_arms(setups, folders, done=ended)
    # The remaining arms train in a group of the same size as before, so their scores come from the
    # same programs.
    run_arms(setups[1:], folders[1:])
    assert GroupRecord.read(folders[1]).arms == 3
    for ours, theirs in zip(folders, whole, strict=True):
        (a, b) = (read_json(path / "result.json") for path in (ours, theirs))
        assert (a["test"], a["validation"]) == (b["test"], b["validation"])


@pytest.mark.parametrize(
    "held, left",
    [
        ([[2, 3], [2, 3]], [[2, 3], [2, 3]]),
        ([[3, 4], [2, 3]], [[3], [2, 3]]),
        ([[1], []], [[], []]),
        ([[1, 2], [1]], [[1], [1]]),
        ([[5, 6], []], [[5, 6], []]),  # an arm that was added
        ([[1, 5, 6], [1, 4, 5]], [[1, 5], [1, 4, 5]]),  # the best checkpoint of both is the first
    ],
)
def test_arms_go_back_to_the_newest_step_that_all_hold(tmp_path, monkeypatch, held, left):
    monkeypatch.setattr(arm_group, "set_damaged_aside", lambda folder: None)
    folders = [tmp_path / str(i) for i in range(len(held))]
    for folder, steps in zip(folders, held, strict=True):
        for step in steps:
            (folder / "checkpoints" / str(step) / "state").mkdir(parents=True)
    go_back_to_common_step(folders, keep_last=2)
    assert [steps_in(folder / "checkpoints") for folder in folders] == left


def test_a_damaged_record_is_reported_and_made_anew(tmp_path, capsys):
    record = GroupRecord(2, [tmp_path.name, "1"], {"phase 0": True})
    record.write([tmp_path])
    assert GroupRecord.read(tmp_path) == record
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    assert GroupRecord.read(copy) is None
    assert "the record of another arm" in capsys.readouterr().err
    path = tmp_path / arm_group.FILE
    path.write_text(path.read_text().replace("true", "false"))
    assert GroupRecord.read(tmp_path) is None
    assert "group.json" in capsys.readouterr().err
