"""`verify`: every kind of file of a run and of an ablation, undamaged and damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run_command

from finetune_jax import tree
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions, save_predictions
from finetune_jax.files import read_json, seal, write_json
from finetune_jax.pretrained import open_weights, save_native
from finetune_jax.tasks import Classification
from finetune_jax.verification import DAMAGED, OK, SKIPPED, verify, verify_prefix_cache


@pytest.fixture
def run(short_run, tmp_path):
    """A copy of the folder of a finished run, with predictions."""
    folder = shutil.copytree(short_run, tmp_path / "run")
    observed = {"logits": np.zeros((3, 2), np.float32), "label": np.zeros(3, np.int32)}
    about = {"source": "made", "split": "test", "split_text": "test"}
    made = Predictions(Classification(("a", "b")), observed, np.arange(3, dtype=np.uint64), about)
    save_predictions(folder / "predictions_1.npz", made)
    return folder


def states(folder):
    return {f.path.relative_to(folder).as_posix(): f.state for f in verify(folder)}


def damaged(folder):
    return {f.path.relative_to(folder).as_posix() for f in verify(folder) if f.state == DAMAGED}


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_all_objects_of_a_whole_run_are_ok_and_nothing_is_written(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    found = states(run)
    assert set(found.values()) == {OK}
    assert found.keys() == {
        *("config.json", "plan.json", "manifest.json", "result.json", "metrics.jsonl"),
        *("checkpoints/2", "artifact", "predictions_1.npz"),
    }
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_run_named_by_a_relative_path_is_verified(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert {f.state for f in verify(Path(run.name))} == {OK}


@pytest.mark.parametrize(
    ("name", "object_"),
    [
        ("artifact/model.safetensors", "artifact"),
        ("predictions_1.npz", "predictions_1.npz"),
        ("checkpoints/2/meta/metadata", "checkpoints/2"),
        ("checkpoints/2/state/manifest.ocdbt", "checkpoints/2"),
    ],
)
def test_a_flipped_bit_is_found(run, name, object_):
    flip(run / name)
    assert damaged(run) == {object_}


def edit(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize(
    ("change", "object_", "reason"),
    [
        (lambda run: (run / "plan.json").write_text("{"), "plan.json", "not readable as JSON"),
        (lambda run: edit(run / "plan.json", hash="0"), "artifact", "another plan"),
        (lambda run: edit(run / "manifest.json", sha256="0"), "artifact", "another weight file"),
        (lambda run: edit(run / "result.json", test={}), "artifact", "other scores of test"),
        (
            lambda run: edit(run / "config.json", eval={"batch_size": 0}),
            "config.json",
            "eval.batch_size",
        ),
        (
            lambda run: (run / "metrics.jsonl").open("a").write('{"step": 3}\n'),
            "metrics.jsonl",
            "line 5: expected an object with step and split",
        ),
        (
            lambda run: (run / "metrics.jsonl").open("a").write('{"step'),
            "metrics.jsonl",
            "line 5: incomplete",
        ),
    ],
)
def test_an_edited_file_is_found_with_the_reason(run, change, object_, reason):
    change(run)
    found = {
        f.path.relative_to(run).as_posix(): f.reason for f in verify(run) if f.state == DAMAGED
    }
    assert object_ in found and reason in found[object_]


def test_a_delta_artifact_is_checked_without_its_base(run):
    folder = run / "artifact"
    with open_weights(folder / "model.safetensors") as weights:
        head = {name: weights.read(name) for name in weights.names() if "/head/" in name}
    save_native(folder / "model.safetensors", tree.unflatten(head), {})
    card = read_json(folder / "artifact.json")
    del card["sha256"]
    card |= {"contents": "delta", "own_fingerprint": tree.fingerprint(tree.unflatten(head))}
    write_json(folder / "artifact.json", seal(card))
    assert damaged(run) == set()
    flip(folder / "model.safetensors")
    assert damaged(run) == {"artifact"}
    del card["own_fingerprint"]  # a checkpoint in the form of older versions
    write_json(folder / "artifact.json", seal(card))
    assert states(run)["artifact"] == SKIPPED


def test_what_no_run_reads_is_skipped(run):
    (run / "checkpoints" / "notes").mkdir()
    (run / "damaged_checkpoints").mkdir()
    found = states(run)
    assert {path for path, state in found.items() if state == SKIPPED} == {
        *("checkpoints/notes", "damaged_checkpoints")
    }


def test_an_ablation_is_checked_with_its_ledger_and_all_arms(run, tmp_path):
    folder = tmp_path / "ablation"
    shutil.copytree(run, folder / "runs" / "a")
    shutil.copytree(run, folder / "runs" / "b")
    (folder / "units").mkdir()
    write_json(folder / "units" / "0.json", {"what": "train"})
    path = folder / "results.jsonl"
    path.write_text("")
    assert damaged(folder) == set() and "results.jsonl" in states(folder)
    path.write_text('{"key": 1}\n')
    flip(folder / "runs" / "b" / "artifact" / "model.safetensors")
    (folder / "units" / "0.json").write_text("{")
    assert damaged(folder) == {"results.jsonl", "runs/b/artifact", "units/0.json"}
    with pytest.raises(UserError, match=r"results\.jsonl, line 1"):
        Ledger(path)
    torn = '{"key": "a", "what": "tr'
    path.write_text(torn)
    assert "results.jsonl" in damaged(folder)
    assert path.read_text() == torn


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a run or of an ablation"):
        list(verify(tmp_path))
    with pytest.raises(UserError, match=r"prefix_cache\.dir"):
        list(verify_prefix_cache(tmp_path / "none"))


def test_a_damaged_entry_of_a_prefix_cache_is_found(tmp_path):
    (tmp_path / ("a" * 32)).mkdir()
    (tmp_path / "other").mkdir()
    (finding,) = verify_prefix_cache(tmp_path)
    assert finding.state == DAMAGED and "meta.json" in finding.reason


def test_the_command_prints_a_line_per_object_and_its_status_tells(run):
    flip(run / "artifact" / "model.safetensors")
    process = run_command("verify", f"--workdir={run}")
    assert process.returncode == 1, process.stderr
    assert f"ok       {run / 'checkpoints' / '2'}\n" in process.stdout
    assert f"damaged  {run / 'artifact'}: model.safetensors: the leaves" in process.stdout
    assert process.stdout.endswith("1 of 8 objects damaged\n")
