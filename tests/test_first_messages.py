"""What a new user is told: exports, default splits, unused devices, and foreign configs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from commands import ROOT, run_command
from PIL import Image
from safetensors.numpy import load_file

from finetune_jax import devices
from finetune_jax.chosen_config import require_trusted
from finetune_jax.cli import load_config
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import best_split
from finetune_jax.files import write_json
from finetune_jax.setup import open_setup
from finetune_jax.training.first_lines import data_line


def test_an_export_into_a_keras_file_is_refused_with_the_suffix():
    process = run_command("export", "--workdir=runs/a", "--format=safetensors", "--output=mine.h5")
    assert process.returncode == 2
    assert "--output=mine.h5: an export is a folder" in process.stderr
    assert "expected a folder such as --output=mine" in process.stderr


@pytest.mark.slow
def test_an_export_that_no_library_opens_lists_the_names_as_flags(short_run, tmp_path):
    folder = tmp_path / "mine"
    flags = (f"--workdir={short_run}", "--format=safetensors", f"--output={folder}")
    process = run_command("export", *flags)
    assert process.returncode == 2
    assert "no library opens resnet8_cifar" in process.stderr
    assert "--names=native or --names=akamaster" in process.stderr
    assert not folder.exists()
    process = run_command("export", *flags, "--names=akamaster")
    assert process.returncode == 0, process.stderr
    assert load_file(folder / "model.safetensors")["linear.weight"].shape == (10, 64)
    process = run_command("export", *flags[:2])
    assert "--output" in process.stderr


def test_the_split_that_is_scored_by_default_is_the_best_that_there_is(capsys):
    config = default()
    assert best_split(config) == "test"
    assert capsys.readouterr().err == ""
    config.data.test = ""
    assert best_split(config) == "validation"
    assert "no test split (data.test is empty): validation is scored" in capsys.readouterr().err
    config.data.validation = ""
    assert best_split(config) == "train"


def test_data_without_a_test_split_is_scored_on_what_there_is(tmp_path, weights):
    photos = tmp_path / "photos"
    for number in range(8):
        path = photos / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(path)
    config = default()
    config.data.source = f"folder:{photos}"
    config.model.name, config.pretrained.path = "resnet8_cifar", str(weights)
    config.pretrained.new_head = True
    config.data.image_size = 16
    config.train.batch_size = config.eval.batch_size = 2
    setup = open_setup(config)
    line = data_line(setup)
    assert "train 7, validation 1 held out of training by data.split_seed=0" in line
    assert "no test split, so that nothing is scored on it" in line
    assert best_split(setup.config) == "validation"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU, whose JAX computes on the CPU because nobody chose a platform."""
    (tmp_path / "nvidia0").touch()
    config = SimpleNamespace(jax_platforms="", jax_num_cpu_devices=-1)
    jax = SimpleNamespace(config=config, default_backend=lambda: "cpu")
    monkeypatch.setattr(devices, "jax", jax)
    signs = (("an NVIDIA GPU", (str(tmp_path / "nvidia0"),), "pip install 'jax[cuda13]'"),)
    monkeypatch.setattr(devices, "_SIGNS", signs)
    return jax


def test_a_gpu_that_is_there_and_not_used_is_a_warning_with_what_to_install(machine, tmp_path):
    (line,) = devices.unused_accelerators()
    assert line == (
        f"warning: this machine has an NVIDIA GPU ({tmp_path / 'nvidia0'}), and JAX computes on "
        f"the CPU: pip install 'jax[cuda13]' installs what JAX needs; JAX_PLATFORMS=cpu chooses "
        f"the CPU"
    )
    (tmp_path / "nvidia0").unlink()
    assert list(devices.unused_accelerators()) == []


@pytest.mark.parametrize("chosen", ["platform", "devices", "gpu"])
def test_a_chosen_cpu_and_a_used_gpu_are_no_warning(machine, chosen):
    if chosen == "platform":
        machine.config.jax_platforms = "cpu"
    elif chosen == "devices":
        machine.config.jax_num_cpu_devices = 2
    else:
        machine.default_backend = lambda: "gpu"
    assert list(devices.unused_accelerators()) == []


def test_the_config_of_a_foreign_run_is_refused_with_what_it_names(
    short_run, tmp_path, monkeypatch
):
    path = tmp_path / "config.json"
    shutil.copy(short_run / "config.json", path)
    require_trusted(path, load_config(str(path)))  # made by this user
    monkeypatch.setenv("FINETUNE_JAX_STATE", str(tmp_path / "state"))
    content = json.loads(path.read_text())
    content["data"]["source"] = "csv:/etc/passwd"
    write_json(path, content)
    with pytest.raises(UserError, match=r"config\.json is not .*data\.source='csv:/etc/passwd'"):
        require_trusted(path, load_config(str(path)))
    content["task"]["loss"] = "their_package.losses:own()"
    write_json(path, content)
    with pytest.raises(UserError, match="--allow_imports=their_package"):
        require_trusted(path, load_config(str(path)))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_command_with_the_config_of_a_foreign_run_ends_before_it_reads(
    command, short_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("FINETUNE_JAX_STATE", str(tmp_path / "state"))
    flags = [f"--workdir={tmp_path / 'run'}"] if command == "train" else []
    process = run_command(command, f"--config={short_run / 'config.json'}", *flags)
    assert process.returncode == 2
    assert "config.json is not the config of a run that you trained" in process.stderr
    assert "--trust" in process.stderr
    assert not (tmp_path / "run").exists()
    process = run_command(command, f"--config={short_run / 'config.json'}", "--trust", *flags)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_head_may_end_the_output_of_a_command_early(weights):
    command = (
        f"{sys.executable} -m finetune_jax.pretrained inspect {weights} --tensors=0 | head -n 1"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_an_empty_scheme_on_the_command_line_says_what_is_expected(tmp_path):
    process = run_command(
        "train", "--config=quickstart", "--config.scheme=", f"--workdir={tmp_path / 'run'}"
    )
    assert process.returncode == 2
    assert "scheme: expected what trains, such as 'last_k(1)'" in process.stderr


def test_an_override_without_a_config_is_answered_with_the_flags_that_make_one():
    process = run_command("train", "--config.model.name=resnet18")
    assert process.returncode == 2
    assert process.stderr.startswith("error: expected --config=NAME of a config or of its file")
    assert "--data=PHOTOS --model=resnet18" in process.stderr
