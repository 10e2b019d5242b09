"""Damaged checkpoints: from which checkpoint a run continues, its messages, and other files."""

import json
import shutil

import numpy as np
import pytest

from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, seal, write_json
from finetune_jax.setup import open_setup
from finetune_jax.training.checkpoint_folder import set_damaged_aside
from finetune_jax.training.checkpoint_integrity import damage_of
from finetune_jax.training.loop import train
from finetune_jax.training.metrics_writer import rows_without_times


class Killed(Exception):
    pass


def setup_of(small_config, select="last"):
    config = load_config(str(small_config))
    config.artifact.select = select
    config.optimizer.ema_decay = 0.5
    return open_setup(config)


@pytest.fixture(scope="module")
def whole(small_config, tmp_path_factory):
    """The folder of a run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(setup_of(small_config), workdir)
    return workdir


@pytest.fixture(scope="module")
def killed_once(small_config, tmp_path_factory):
    """The folder of the same run, interrupted at step 6; it has checkpoints of steps 4 and 5."""

    def kill(step, *_):
        if step == 6:
            raise Killed

    workdir = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Killed):
        train(setup_of(small_config), workdir, kill)
    return workdir


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of the folder of the interrupted run."""
    return shutil.copytree(killed_once, tmp_path / "run")


def leaf_file(step):
    """The largest file of a checkpoint, which holds values of leaves."""
    files = [p for p in step.rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def flip(file, position=None):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 16
    file.write_bytes(content)


def fingerprint(workdir):
    return read_json(workdir / "artifact" / "artifact.json")["fingerprint"]


def steps_in(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def break_leaf(step):
    flip(leaf_file(step))


def break_meta(step):
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["train_flops"] = [1.0]
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("breaks", "named"),
    [
        (break_leaf, "leaf state/"),
        (break_meta, "does not have its own checksum"),
        (lambda step: (step / "meta" / "metadata").write_text("{"), "not readable as JSON"),
        (lambda step: (step / "metrics" / "metrics").write_text('{"accuracy": 0.99}'), "metrics"),
        (lambda step: shutil.rmtree(step / "state" / "ocdbt.process_0"), "leaf state/"),
        (lambda step: (step / "state" / "_METADATA").unlink(), "_METADATA"),
        (lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""), "manifest.ocdbt"),
        (lambda step: flip(step / "state" / "_sharding", 0), "_sharding"),
        (lambda step: shutil.rmtree(step / "state"), "state"),
        (lambda step: shutil.rmtree(step), "meta"),
    ],
)
def test_damage_of_a_checkpoint_is_found_with_its_place(killed, breaks, named):
    step = killed / "checkpoints" / "4"
    assert damage_of(step) == ""
    breaks(step)
    assert named in damage_of(step)


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_ends_with_the_same_bits(
    small_config, whole, killed, capsys
):
    folder, aside = killed / "checkpoints", killed / "damaged_checkpoints"
    shutil.copytree(folder / "5", aside / "5")  # moved there after earlier damage
    break_leaf(folder / "5")
    scores = read_json(folder / "4" / "metrics" / "metrics")
    (folder / "4" / "metrics" / "metrics").write_text('{"accuracy": 0.99}')
    # The file that tells which leaf is a PRNG key.
    (folder / "4" / "state" / "array_metadatas" / "process_0").unlink()
    (folder / "99").mkdir()
    (folder / "98").write_text("")
    (folder / "notes").mkdir()
    (folder / ".DS_Store").write_bytes(b"\0")
    shutil.copytree(folder / "5", folder / "7.orbax-checkpoint-tmp")

    def scores_are_repaired(step, *_):
        if step == 5:
            assert read_json(folder / "4" / "metrics" / "metrics") == scores

    train(setup_of(small_config), killed, scores_are_repaired)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "is damaged" in line]
    assert len(lines) == 1 and "checkpoint at step 5" in lines[0] and "leaf state/" in lines[0]
    assert "resuming from step 4" in said
    assert "checkpoint at step 4: its scores were damaged" in said
    for name in ("99", "98", "notes", ".DS_Store"):
        assert f"checkpoints/{name}: no checkpoint, ignored" in said
    assert (
        {"5", "6", "notes", ".DS_Store"}
        <= steps_in(folder)
        <= {*("4", "5", "6", "notes", ".DS_Store")}
    )
    assert steps_in(aside) == {"5", "5-2", "98", "99"}
    assert fingerprint(killed) == fingerprint(whole)
    ours, theirs = (rows_without_times(path / "metrics.jsonl") for path in (killed, whole))
    assert ours == theirs


def test_a_run_without_a_whole_checkpoint_is_refused_in_one_line(killed):
    for step in ("4", "5"):
        break_leaf(killed / "checkpoints" / step)
    for _ in range(2):  # nothing is moved, so the run is refused again
        with pytest.raises(UserError, match="no checkpoint is whole.*step 5: leaf.*remove") as e:
            set_damaged_aside(killed / "checkpoints")
        assert "\n" not in str(e.value)
    assert steps_in(killed / "checkpoints") == {"4", "5"}


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_refused_with_what_to_do(small_config, tmp_path):
    workdir = tmp_path / "run"

    def kill(step, split, _):
        if split == "test" or step == 6:
            raise Killed

    with pytest.raises(Killed):
        train(setup_of(small_config, "best"), workdir, kill)
    # Of the two evaluations, at steps 4 and 6, the first shall be the best.
    step = workdir / "checkpoints" / "4"
    meta = read_json(step / "meta" / "metadata")
    assert meta["metrics"] and read_json(step / "metrics" / "metrics") == meta["metrics"]
    meta.pop("sha256")
    meta["metrics"] = {"accuracy": 2.0}
    write_json(step / "meta" / "metadata", seal(meta))
    break_leaf(step)
    with pytest.raises(UserError, match=r"4: 1 restored leaves .* move this checkpoint away") as e:
        train(setup_of(small_config, "best"), workdir)
    assert "\n" not in str(e.value)
    shutil.rmtree(step)
    assert train(setup_of(small_config, "best"), workdir)["selected_step"] == 6


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version_is_restored_and_reported(
    small_config, whole, killed, capsys
):
    path = killed / "checkpoints" / "5" / "meta" / "metadata"
    meta = read_json(path)
    # The keys that the first version wrote.
    kept = ("phase", "next_step", "base_fingerprint", "snapshot", "audits", "probes",
            "train_flops", "plan")  # fmt: skip
    path.write_text(json.dumps({key: meta[key] for key in kept}))
    train(setup_of(small_config), killed)
    assert "older version without checksums" in capsys.readouterr().err
    assert fingerprint(killed) == fingerprint(whole)


def test_every_leaf_of_the_state_has_a_checksum(killed):
    meta = read_json(killed / "checkpoints" / "5" / "meta" / "metadata")
    kinds = {name.split("/")[1] for name in meta["leaves"] if name.startswith("state/")}
    assert kinds == {"step", "params", "stats", "opt_state", "ema", "key", "hyper"}
    assert np.prod(meta["leaves"]["state/key"][1]) == 2
