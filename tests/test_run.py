"""Runs as a user starts them: commands in processes, on a config that takes a few seconds."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ONE_DEVICE, ROOT, run_command

from finetune_jax import cli, tree
from finetune_jax import config as config_lib
from finetune_jax.artifact import Artifact
from finetune_jax.data.sources import open_source
from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights, save_native
from finetune_jax.progress import Progress
from finetune_jax.setup import open_setup
from finetune_jax.training.first_lines import weights_line
from finetune_jax.training.metrics_writer import MetricsWriter


def tensors(path: Path) -> dict[str, np.ndarray]:
    with open_weights(path) as file:
        return {name: file.read(name) for name in file.names()}


def losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def train(config: Path, workdir: Path, *overrides: str, devices: int = 1):
    return run_command(
        "train", f"--config={config}", f"--workdir={workdir}", *overrides, devices=devices
    )


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    process = train(small_config, workdir)
    assert process.returncode == 0, process.stderr
    return workdir, process


def test_a_run_leaves_what_it_promises(finished):
    workdir, process = finished
    names = {p.name for p in workdir.iterdir()}
    assert {
        "config.json", "plan.json", "manifest.json", "metrics.jsonl", "checkpoints", "artifact",
        "result.json",
    } <= names  # fmt: skip
    assert "bit-identical" in process.stderr
    line = "weights: 35 tensors loaded, 2 re-initialised (head); see manifest.json"
    assert line in process.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["test"]["n_scored"] == 50
    manifest = json.loads((workdir / "manifest.json").read_text())
    decisions = {row["leaf"]: row["decision"] for row in manifest["rows"]}
    assert decisions["params/head/kernel"] == "reinitialised"
    assert decisions["params/stem/conv/kernel"] == "loaded"
    assert len(losses(workdir)) == 6


def test_frozen_leaves_of_the_artifact_are_the_weight_files(finished, weights):
    workdir, _ = finished
    before, after = tensors(weights), tensors(workdir / "artifact" / "model.safetensors")
    free = ("params/layer3_block0/", "batch_stats/layer3_block0/", "params/head/")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(value, after[name]) != name.startswith(free), name


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_resumes_to_the_same_bits(small_config, tmp_path):
    longer = "--config.train.steps=24"
    assert train(small_config, tmp_path / "whole", longer).returncode == 0
    workdir, step = tmp_path / "killed", random.SystemRandom().randrange(1, 16)
    print(f"killed after step {step}")  # shown if this fails
    command = [sys.executable, "-m", "finetune_jax.train"]
    process = subprocess.Popen(
        [*command, f"--config={small_config}", f"--workdir={workdir}", longer],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240

    def reached() -> bool:  # Orbax renames a complete folder to its number
        names = [p.name for p in (workdir / "checkpoints").glob("*")]
        return any(name.isdigit() and int(name) >= step for name in names)

    while not reached() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "result.json").exists()
    resumed = train(small_config, workdir, longer)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step" in resumed.stderr
    # The resumed run cached the prefix, as the killed run did.
    assert "of 5 stages cached" in resumed.stderr
    whole, again = (
        tensors(tmp_path / name / "artifact" / "model.safetensors") for name in ("whole", "killed")
    )
    for name, value in whole.items():
        assert np.array_equal(value, again[name]), name
    assert losses(workdir) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(small_config, finished, tmp_path):
    process = train(small_config, tmp_path / "eight", "--config.mesh.fsdp=2", devices=8)
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(
        losses(tmp_path / "eight"), losses(finished[0]), rtol=1e-5, atol=1e-5
    )
    # The evaluation does not need the mesh of the training.
    process = run_command("evaluate", f"--workdir={tmp_path / 'eight'}")
    assert process.returncode == 0, process.stderr
    own = json.loads((tmp_path / "eight" / "result.json").read_text())["test"]
    assert json.loads(process.stdout)["accuracy"] == own["accuracy"]


@pytest.mark.slow
def test_a_smoothed_run_on_two_devices_has_the_score_of_the_evaluation(small_config, tmp_path):
    process = train(
        small_config,
        tmp_path,
        "--config.mesh.cpu_devices=2",
        "--config.mesh.fsdp=2",
        "--config.train.accumulate=2",
        "--config.task.label_smoothing=0.1",
    )
    assert process.returncode == 0, process.stderr
    process = run_command("evaluate", f"--workdir={tmp_path}")
    assert process.returncode == 0, process.stderr
    score = json.loads(process.stdout)
    own = json.loads((tmp_path / "result.json").read_text())["test"]
    assert score["accuracy"] == own["accuracy"]
    # Both are the plain cross-entropy, because labels are smoothed in training only.
    assert score["loss"] == pytest.approx(own["loss"], rel=1e-5)


@pytest.mark.slow
def test_evaluate_says_what_it_cannot_score(finished, tmp_path):
    process = run_command("evaluate", f"--workdir={finished[0]}", devices=3)
    assert process.returncode == 2
    assert "eval.batch_size: 16 images do not divide over 3 devices" in process.stderr
    process = run_command("evaluate", f"--workdir={finished[0]}", "--batch_size=15", devices=3)
    assert json.loads(process.stdout)["n_scored"] == 50
    shutil.copytree(finished[0], tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["validation"] = ""
    path.write_text(json.dumps(config))
    process = run_command("evaluate", f"--workdir={tmp_path / 'copy'}", "--split=validation")
    assert process.returncode == 2
    assert "the config has no validation split, data.validation is empty" in process.stderr


def test_a_finished_run_is_left_as_it_is(small_config, finished):
    workdir, _ = finished
    files = ("metrics.jsonl", "result.json", "artifact/artifact.json")
    before = [(workdir / name).stat().st_mtime_ns for name in files]
    process = train(small_config, workdir)
    assert process.returncode == 0, process.stderr
    assert "is finished" in process.stderr
    assert "compiling" not in process.stderr
    assert [(workdir / name).stat().st_mtime_ns for name in files] == before
    score = json.loads((workdir / "result.json").read_text())["test"]["accuracy"]
    assert f"test accuracy {100 * score:.1f} %" in process.stderr


def test_a_resumed_run_keeps_the_rows_it_continues_from_or_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    rows = [(0, "probe"), (1, "train"), (2, "train"), (2, "test"), (3, "train")]
    text = "".join(json.dumps({"step": n, "split": s}) + "\n" for n, s in rows) + '{"st'
    path.write_text(text)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            MetricsWriter(tmp_path, tensorboard=False, resume_step=2)
    assert path.read_text() == text
    for step, expected in ((2, rows[:3]), (None, [])):
        with MetricsWriter(tmp_path, tensorboard=False, resume_step=step):
            kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(row["step"], row["split"]) for row in kept] == expected


def test_evaluate_repeats_the_runs_own_score(finished):
    workdir, _ = finished
    process = run_command("evaluate", f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    score = json.loads(process.stdout)
    expected = json.loads((workdir / "result.json").read_text())["test"]
    assert score["accuracy"] == expected["accuracy"]
    assert score["n_scored"] == expected["n_scored"]


def test_predict_needs_nothing_but_the_moved_artifact(finished, tmp_path):
    from PIL import Image

    moved = tmp_path / "elsewhere"
    shutil.copytree(finished[0] / "artifact", moved)
    example = open_source("digits").read("test")[3]
    Image.fromarray(example["image"]).save(tmp_path / "digit.png")
    process = run_command("predict", f"--workdir={moved}", str(tmp_path / "digit.png"), "--json")
    assert process.returncode == 0, process.stderr
    (answer,) = json.loads(process.stdout)
    artifact = Artifact.load(moved)
    logits = artifact.outputs({"image": artifact.preprocess.host(example)["image"][None]})
    assert answer["label"] == artifact.task.class_names[int(np.argmax(logits))]
    assert abs(sum(answer["probabilities"].values()) - 1) < 1e-6


def test_another_scheme_in_the_same_workdir_is_refused_with_the_difference(small_config, finished):
    before = (finished[0] / "config.json").read_text()
    process = train(small_config, finished[0], "--config.scheme=linear_probe")
    assert process.returncode == 2
    assert "scheme: 'last_k(1)' -> 'linear_probe'" in process.stderr
    assert (finished[0] / "config.json").read_text() == before


@pytest.mark.slow
def test_a_checkpoint_of_another_plan_is_refused_with_the_leaves(small_config, finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "config.json").unlink()
    process = train(small_config, workdir, "--config.scheme=linear_probe")
    assert process.returncode == 2
    assert "written under another plan" in process.stderr
    assert "layer3_block0/conv1/kernel: last_k(1) (3, 3, 32, 64) -> frozen" in process.stderr


def test_a_changed_artifact_is_refused(finished, tmp_path):
    moved = tmp_path / "changed"
    shutil.copytree(finished[0] / "artifact", moved)
    path = moved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    process = run_command("predict", f"--workdir={moved}", str(ROOT / "README.md"))
    assert process.returncode == 2
    assert "it was changed" in process.stderr


@pytest.mark.slow
def test_a_delta_artifact_needs_its_base_and_no_other(small_config, finished, weights, tmp_path):
    workdir = tmp_path / "run"
    process = train(small_config, workdir, "--config.artifact.contents=delta")
    assert process.returncode == 0, process.stderr
    small, whole = (f / "artifact" / "model.safetensors" for f in (workdir, finished[0]))
    kept = ("params/layer3_block0/", "batch_stats/layer3_block0/", "params/head/")
    assert tensors(small) and all(name.startswith(kept) for name in tensors(small))
    expected = [name for name in tensors(whole) if name.startswith(kept)]
    assert sorted(tensors(small)) == sorted(expected)
    assert small.stat().st_size < whole.stat().st_size
    with pytest.raises(UserError, match="holds only what differs from .*give that file with --bas"):
        Artifact.load(workdir)
    with pytest.raises(UserError, match="is not the file this artifact started from"):
        Artifact.load(workdir, str(whole))
    a, b = Artifact.load(workdir, str(weights)), Artifact.load(finished[0])
    assert tree.fingerprint(a.variables) == tree.fingerprint(b.variables)


@pytest.mark.slow
def test_a_delta_of_a_half_precision_base_without_a_head(small_config, weights, tmp_path):
    headless = tmp_path / "headless.safetensors"
    flat = {name: x for name, x in tensors(weights).items() if "/head/" not in name}
    save_native(headless, tree.unflatten(flat), {})
    loaded = []
    for contents in ("all", "delta"):
        process = train(
            small_config,
            tmp_path / contents,
            f"--config.pretrained.path={headless}",
            "--config.model.frozen_dtype=bfloat16",
            f"--config.artifact.contents={contents}",
        )
        assert process.returncode == 0, process.stderr
        loaded.append(Artifact.load(tmp_path / contents, str(headless)))
    whole, delta = (tree.flatten(artifact.variables) for artifact in loaded)
    assert delta["params/stem/conv/kernel"].dtype == "bfloat16"
    assert delta["params/head/kernel"].dtype == "float32"
    assert delta.keys() == whole.keys()
    for name, value in whole.items():
        assert np.array_equal(value, delta[name]), name


@pytest.mark.slow
def test_rules_as_a_list_work_in_a_config_file(small_config, tmp_path):
    rules = [("head/.*", "head(lr=10)"), (".*", "frozen")]
    path = tmp_path / "rules.py"
    text = small_config.read_text().replace('"last_k(1)"', repr(rules))
    path.write_text(text)
    config = cli.load_config(str(path))
    assert open_setup(config).scheme == repr(rules)
    again = config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config))))
    assert open_setup(again).plan.hash == open_setup(config).plan.hash
    assert not config_lib.difference(config_lib.to_json(config), config_lib.to_json(again))
    with pytest.raises(TypeError):
        config.scheme = 3
    # A text on the command line overrides the list, however the flag is written.
    for override in (["--config.scheme=norm_ony"], ["--config.scheme", "norm_ony"]):
        process = run_command("plan", f"--config={path}", *override)
        assert "Did you mean 'norm_only'" in process.stderr
    bad = "--config.scheme=[('hed/.*', 'a'), ('.*', 'frozen')]"
    assert "matches no leaf" in run_command("plan", f"--config={path}", bad).stderr


def test_frozen_random_leaves_are_warned_of():
    manifest = {"file": None, "rows": []}
    config = config_lib.default()
    assert "WARNING" not in weights_line(open_setup(config), manifest)
    config.scheme = "linear_probe"
    assert "WARNING: 57 frozen leaves are random" in weights_line(open_setup(config), manifest)


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "predict", "plan", "suggest", "average", "verify"]
)
def test_help_shows_the_commands_own_flags_and_an_example(command):
    process = run_command(command, "--help")
    assert process.returncode == 0
    example = f"python -m finetune_jax.{command} --"
    wanted = {
        "predict": ("--workdir", "--base"),
        "average": ("--members", "--base"),
        "verify": ("--workdir", "--prefix_cache", "--json"),
    }
    for part in (example, *wanted.get(command, ("--config:", "--config=configs/"))):
        assert part in process.stdout, part


@pytest.mark.parametrize(
    ("uv", "command"), [("uv", "uv venv --quiet --python python3 v"), ("", "python3 -m venv v")]
)
def test_make_creates_the_environment_with_uv_where_there_is_one(uv, command):
    process = subprocess.run(
        ["make", "--dry-run", f"UV={uv}", "PYTHON=python3", "VENV=v", "v/bin/python"],
        cwd=ROOT,
        # Not as part of the make that runs the tests, which would announce its folders.
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip() == command


@pytest.mark.slow
def test_the_quickstart_twice(small_config, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(small_config.read_text() + "QUICKSTART = {'head': 0.1, 'norm_only': 0.1}")
    for _ in range(2):
        process = run_command("quickstart", f"--config={config}", f"--workdir={tmp_path / 'runs'}")
        assert process.returncode == 0, process.stderr
        assert "step FLOPs, prefix cached" in process.stdout
        assert "is finished" not in process.stderr
    assert (tmp_path / "runs" / "quickstart.png").stat().st_size > 1000


def test_plan_prints_one_json_object(small_config):
    process = run_command("plan", f"--config={small_config}", "--json")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(process.stdout)
    assert numbers.keys() >= {
        "trainable_params", "frozen_params", "flops_step", "flops_step_full", "flops_forward",
        "temp_bytes", "temp_bytes_full", "optimizer_bytes", "checkpoint_bytes",
    }  # fmt: skip
    assert numbers["trainable_params"] + numbers["frozen_params"] == 75_290
    assert numbers["flops_forward"] < numbers["flops_step"] < numbers["flops_step_full"]
    text = run_command("plan", f"--config={small_config}").stdout
    for part in ("layer3_block0", "statistics tracked", "statistics kept", "ratio", "optimizer"):
        assert part in text


@pytest.mark.slow
def test_training_imports_no_heavy_library(small_config, tmp_path):
    script = f"""
import sys
import finetune_jax
from pathlib import Path
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train
space = {{}}
exec(Path({str(small_config)!r}).read_text(), space)
train(open_setup(space["get_config"]()), Path({str(tmp_path / "run")!r}))
heavy = ("tensorflow", "tensorflow_datasets", "matplotlib", "huggingface_hub", "torch", "qwix")
print([name for name in heavy if name in sys.modules])
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"


def test_the_first_line_comes_within_five_seconds(small_config, tmp_path):
    command = [sys.executable, "-m", "finetune_jax.train", f"--config={small_config}"]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, stderr=subprocess.PIPE
    )
    line = process.stderr.readline()
    seconds = time.monotonic() - began
    process.kill()
    process.wait()
    assert line.startswith(b"finetune_jax.train in")
    assert seconds < 5


def test_a_terminal_shows_a_bar_and_a_file_shows_lines(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    for stream, bar in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress(total=10, start=0)
        progress.move(5, lambda: "step 5/10  loss 1.25")
        progress.log("the line of step 5")
        progress.close(10, "step 10/10")
        text = stream.getvalue()
        assert ("50%|" in text) == ("| step 5/10  loss 1.25" in text) == bar
        assert ("100%|" in text) == ("| step 10/10" in text) == bar
        assert ("the line of step 5" in text) != bar
