"""Bad input of the export command: a message that names it, and nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import ONE_DEVICE, ROOT, run_command
from exported_models import SMALL_VIT, examples, made

from finetune_jax.errors import UserError
from finetune_jax.export import export, require
from finetune_jax.export.formats import format_of
from finetune_jax.models import build, initialise
from finetune_jax.pretrained import save_native


@pytest.mark.parametrize(("name", "meant"), [("Onyx", "onnx"), ("safetensor", "safetensors")])
def test_an_unknown_format_gets_the_nearest_name(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"expected one of stablehlo.*Did you mean '{meant}'"):
        format_of(name)


def test_a_family_without_a_place_in_a_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet20_cifar"):
        require(made("resnet20_cifar", abstract=True), "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="LoRA|deltas"):
        require(made(SMALL_VIT, abstract=True), "peft", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["a_file", "full"])
def test_an_output_that_exists_is_not_touched(tmp_path: Path, output: str) -> None:
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match=f"--output=.*{output}: expected a new or an empty folder"):
        require(made(SMALL_VIT, abstract=True), "orbax", tmp_path / output)
    assert (tmp_path / "a_file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"


@pytest.mark.parametrize("fault", ["write", "nan", "shape", "interrupted"])
def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model, orbax = made(SMALL_VIT), format_of("orbax")

    def write(_: Any, folder: Path) -> None:
        (folder / "half").write_text("half")
        if fault == "write":
            raise UserError("no place")
        if fault == "interrupted":
            raise KeyboardInterrupt

    def opened(*_: Any) -> Any:
        shape = (2, 5) if fault == "shape" else (20, 3)
        return lambda batch: np.full((len(batch["image"]), shape[1]), np.nan, np.float32)

    monkeypatch.setattr(orbax, "write", write)
    monkeypatch.setattr(orbax, "opened", opened)
    errors = {
        "write": "no place",
        "nan": "NaN or infinite",
        "shape": r"outputs of the shape \(1, 5",
    }
    kind = KeyboardInterrupt if fault == "interrupted" else UserError
    with pytest.raises(kind, match=errors.get(fault)):
        export(model, "orbax", tmp_path / "out", examples(model, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_base_that_is_missing_or_another_is_named(
    small_config: Path, weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = run_command(
        "train", f"--config={small_config}", f"--workdir={run}", "--config.train.steps=1",
        "--config.artifact.contents=delta",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    other = tmp_path / "other.safetensors"
    model = build("resnet8_cifar", 10, image_size=32)
    save_native(other, initialise(model, 32, jax.random.key(8)), {})
    for base in (tmp_path / "missing.safetensors", other):
        process = run_command(
            "export", f"--workdir={run}", "--format=orbax", f"--output={tmp_path / 'out'}",
            f"--base={base}",
        )  # fmt: skip
        assert process.returncode == 2, process.stderr
        assert str(base) in process.stderr and "Traceback" not in process.stderr
    assert {*tmp_path.iterdir()} == {run, other}


_STOPPED = """
import pathlib, sys, time
from finetune_jax import cli
from finetune_jax.export import orbax
from finetune_jax.export.__main__ import main

def write(model, folder):
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

orbax.write = write
sys.argv[0] = "finetune_jax.export"
cli.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_export_leaves_no_folder(short_run: Path, tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPPED, f"--workdir={short_run}", "--format=orbax",
         f"--output={tmp_path / 'out'}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert [*tmp_path.iterdir()]
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode and "Traceback" not in printed, printed
    assert not [*tmp_path.iterdir()]
