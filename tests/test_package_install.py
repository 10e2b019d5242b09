"""The installed package works in a folder of its own: from a wheel, far from the repository."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from commands import QUICK_COMPILE, ROOT

SHIPPED = ("finetune_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
STEPS = ["--config.train.steps=3", "--config.eval.every_epochs=1", "--config.log.tensorboard=False"]


def run(*command: str | Path, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILE}
    process = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"
    return process.stdout


def install(folder: Path, *options: str) -> Path:
    """Installs a copy of the sources into an empty environment; returns its folder of programs."""
    source = folder / "source"
    source.mkdir()
    for name in (*SHIPPED, "requirements.txt"):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    if uv := shutil.which("uv"):
        run(uv, "pip", "install", "--python", python, *options, source, folder=folder)
    else:
        pytest.importorskip("pip", reason="not run: needs pip or uv")
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        run(*pip, *options, source, folder=folder)
    return python.parent


def check(programs: Path, folder: Path) -> None:
    """Trains, predicts and runs the README's example in a folder, with the installed package."""
    folder.mkdir()
    program = programs / "finetune-jax"
    where = "import finetune_jax; print(finetune_jax.__file__)"
    assert str(programs.parent) in run(programs / "python", "-c", where, folder=folder)
    arguments = ["--config=quickstart", "--workdir=x", *STEPS]
    run(program, "train", *arguments, folder=folder)
    result = json.loads((folder / "x" / "result.json").read_text())
    assert result["audit"]["moved_leaves"] > 0
    image = (
        "from PIL import Image; import numpy as np; "
        "Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save('digit.png')"
    )
    run(programs / "python", "-c", image, folder=folder)
    assert "probabilities" in run(
        program, "predict", "--workdir=x", "digit.png", "--json", folder=folder
    )
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert example
    (folder / "example.py").write_text(example[1])
    run(programs / "python", "example.py", folder=folder)


@pytest.mark.slow
def test_a_wheel_beside_the_installed_dependencies_works(tmp_path):
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"needs setuptools 77 or newer, found {version}")
    site = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (site / "site-packages").mkdir(parents=True)
    # The modules of this environment, without its editable installation of the package.
    (site / "site-packages" / "tests.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-deps", "--no-build-isolation"]
    if not shutil.which("uv"):
        options += ["--ignore-installed", "--no-index"]
    check(install(tmp_path, *options), tmp_path / "elsewhere")


@pytest.mark.slow
def test_an_empty_environment_gets_a_working_tool(tmp_path):
    """Downloads the dependencies: minutes, and a gigabyte."""
    check(install(tmp_path), tmp_path / "elsewhere")
