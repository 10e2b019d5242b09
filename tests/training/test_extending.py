"""A run that gets another length goes on from its latest checkpoint."""

import json

import pytest
from small_runs import config_of, same_end

from finetune_jax import config as config_lib
from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.training.extending import changed_length, remarks, set_aside
from finetune_jax.training.folder import claim_workdir, finished_result, open_workdir
from finetune_jax.training.loop import train
from finetune_jax.verification import OK, verify


def run(weights, folder, steps, scheme="head", **changes):
    return train(open_setup(config_of(weights, scheme, train__steps=steps, **changes)), folder)


@pytest.mark.slow
def test_a_finished_run_goes_on_to_the_bits_of_the_longer_run(weights, tmp_path, capsys):
    options = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 2}
    whole = run(weights, tmp_path / "whole", 6, **options)
    folder = tmp_path / "run"
    short = run(weights, folder, 4, **options)
    capsys.readouterr()
    longer = run(weights, folder, 6, **options)
    said = capsys.readouterr().err
    assert "the run had 4 steps and now has 6; it goes on after step 4" in said
    assert "the schedule 'constant' has the same learning rates up to here" in said
    assert "resuming from step 4" in said
    same_end(tmp_path / "whole", folder)
    for key in ("steps", "audit", "test", "validation", "train_flops", "selected_step"):
        assert longer[key] == whole[key], key
    change = {"step": 4, "changes": ["length: 4 -> 6 steps"]}
    assert longer["accepted"] == [change] and whole["accepted"] == []
    assert finished_result(folder)["accepted"] == [change]
    assert list(Artifact.load(folder).card["accepted"]) == [change]
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 6
    kept = folder / "extended_from" / "4"
    assert Artifact.load(kept).card["scores"]["test"]["loss"] == short["test"]["loss"]
    assert json.loads((kept / "result.json").read_text())["steps"] == 4
    assert {finding.state for finding in verify(folder)} == {OK}
    assert kept / "artifact" in {finding.path for finding in verify(folder)}
    with pytest.raises(UserError, match="the run has done 6 steps, which cannot be taken back"):
        run(weights, folder, 5, **options)
    assert finished_result(folder)["steps"] == 6


@pytest.mark.slow
def test_a_stretched_schedule_is_reported_and_an_extension_is_resumed(
    weights, tmp_path, capsys, monkeypatch
):
    from test_phases_run import run_until

    options = {"optimizer__schedule": "cosine", "optimizer__learning_rate": 0.1}
    run(weights, tmp_path / "one", 3, **options)
    run(weights, tmp_path / "two", 3, **options)
    capsys.readouterr()
    run(weights, tmp_path / "one", 6, **options)
    said = capsys.readouterr().err
    # 0.1 * (1 + cos(pi * k / n)) / 2 for (k, n) = (2, 3), (3, 6) and (2, 6).
    assert "'cosine' is stretched over 6 steps: its learning rate was 0.025 at step 3" in said
    assert "is 0.05 at step 4; in a run of this length from the start it is 0.075 at step 3" in said
    # A power cut in the extension: the folder holds no result of the shorter run any more.
    longer = config_of(weights, "head", train__steps=6, **options)
    run_until(longer, tmp_path / "two", 5, monkeypatch)
    assert finished_result(tmp_path / "two") is None
    assert not (tmp_path / "two" / "artifact").exists()
    result = train(open_setup(longer), tmp_path / "two")
    assert result["accepted"] == [{"step": 3, "changes": ["length: 3 -> 6 steps"]}]
    same_end(tmp_path / "one", tmp_path / "two")


def test_only_the_last_phase_gets_another_length(weights, tmp_path):
    def lengths(scheme, before, done, **now):
        setup = open_setup(config_of(weights, scheme, **now))
        old = config_lib.to_json(config_of(weights, scheme, **before))
        return setup, changed_length(setup, tmp_path, old, 32, done)

    six, nine = {"train__steps": 6}, {"train__steps": 9}
    phases = "head + phase(steps=2) >> last_k(1)"
    assert lengths(phases, six, 6, **nine)[1] == ([2, 4], [2, 7])
    assert lengths("head", six, 6, train__steps=0, train__epochs=3.0)[1] is None  # 6 steps, too
    assert lengths("head", {"train__steps": 0, "train__epochs": 1.0}, 2, **six)[1] == ([2], [6])
    with pytest.raises(UserError, match=r"phase 1 of 2 would have 4 steps in place of 3, and only"):
        lengths("head >> last_k(1)", six, 6, train__steps=8)
    with pytest.raises(UserError, match=r"train.steps: 9 -> 6: the run has done 7 steps"):
        lengths("head", nine, 7, **six)
    assert lengths("head", nine, 5, **six)[1] == ([9], [6])  # shorter, but not yet reached
    # Where only one of the two lengths reads the frozen prefix often enough to cache it.
    one = {"train__steps": 2, "optimizer__schedule": "constant"}
    setup, found = lengths("head", one, 2, optimizer__schedule="constant", **nine)
    assert "cached for one of the two lengths only" in list(remarks(setup, found, 32, 2))[-1]


def test_a_folder_is_opened_for_another_length_alone_and_the_old_end_is_kept(weights, tmp_path):
    old, new = (config_lib.to_json(config_of(weights, "head", train__steps=n)) for n in (6, 9))
    assert open_workdir(tmp_path, old) is None
    claim_workdir(tmp_path, old)
    assert open_workdir(tmp_path, old) is None
    assert open_workdir(tmp_path, new)["train"]["steps"] == 6
    other = config_lib.to_json(config_of(weights, "norm", train__steps=9))
    with pytest.raises(
        UserError, match="another config(.|\n)*scheme: .*(.|\n)*train.steps: 6 -> 9"
    ):
        open_workdir(tmp_path, other)
    for _ in range(2):
        (tmp_path / "artifact").mkdir()
        (tmp_path / "result.json").write_text("{}")
        set_aside(tmp_path, 6)
        set_aside(tmp_path, 6)  # nothing is left to move
        kept = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("extended_from/*/*"))
        assert kept == ["extended_from/6/artifact", "extended_from/6/result.json"]
        assert not (tmp_path / "artifact").exists() and not (tmp_path / "result.json").exists()
