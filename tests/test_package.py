"""The package as it is installed: commands, shipped configs and shipped weights by name."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import ROOT

import finetune_jax
from finetune_jax.__main__ import COMMANDS
from finetune_jax.cli import call_config_file, config_constant, load_config
from finetune_jax.configs import shipped
from finetune_jax.errors import UserError
from finetune_jax.pretrained.sources import resolve

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def program(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m finetune_jax``, which is the console script, in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "finetune_jax", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_every_command_is_listed_and_has_a_module():
    listed = program("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", listed, re.M)
        assert importlib.util.find_spec(f"finetune_jax.{command}")
    files = (ROOT / "finetune_jax").glob("*.py")
    with_main = {f.stem for f in files if "cli.run(main)" in f.read_text()}
    assert with_main <= {*COMMANDS}


def test_help_imports_no_command():
    code = (
        "import sys; sys.argv = ['finetune-jax', '--help']\n"
        "from finetune_jax.__main__ import main; main()\n"
        "assert not {'jax', 'absl', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", ["train", "models"])
def test_help_of_a_command_imports_no_jax(command):
    code = (
        f"import sys; sys.argv = ['finetune-jax', {command!r}, '--help']\n"
        "from finetune_jax.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'flax', 'tensorflow_datasets'} & {*sys.modules}"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert b"flags:" in found.stdout


def test_every_extra_that_a_message_names_exists():
    code = "".join(path.read_text() for path in (ROOT / "finetune_jax").rglob("*.py"))
    named = set(re.findall(r'lacks\(.*, "([a-z-]+)"\)', code))
    named |= set(re.findall(r"pip install 'finetune_jax\[([a-z-]+)\]'", code))
    assert len(named) >= 7
    assert named <= PROJECT["optional-dependencies"].keys()


def test_an_unknown_command_gets_the_nearest_name():
    process = program("trian")
    assert process.returncode == 2
    assert process.stderr.startswith("error: no command 'trian'. Did you mean 'train'?")


def test_the_console_script_is_the_main_module():
    assert PROJECT["scripts"] == {"finetune-jax": "finetune_jax.__main__:main"}


def test_the_version_is_in_one_place():
    assert "version" in PROJECT["dynamic"]
    text = (ROOT / "finetune_jax" / "__init__.py").read_text()
    assert re.findall(r'^__version__ = "(.*)"$', text, re.M) == [finetune_jax.__version__]
    assert program("--version").stdout.strip() == finetune_jax.__version__


def test_every_shipped_config_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "tasks/digits_vit", "pods/vtab", "ablations/lp_ft"} <= {*shipped()}
    for name in shipped():
        config = load_config(name)
        assert str(ROOT) not in config.to_json_best_effort(), name
    assert load_config("eval_cifar10:32").model.name == "resnet32_cifar"
    assert config_constant("quickstart", "QUICKSTART")["full"] == 0.1


def test_an_unknown_config_gets_the_nearest_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="quikstart. Did you mean 'quickstart'"):
        load_config("quikstart")
    with pytest.raises(UserError, match="Did you mean 'tasks/digits_vit'"):
        load_config("configs/tasks/digit_vit.py")


def test_a_file_goes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("def get_config():\n  return 'mine'")
    assert call_config_file("quickstart", "get_config") == "mine"


def test_configs_of_two_folders_each_import_their_own_sibling(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "_shared.py").write_text(f"NAME = {name!r}")
        config = "def get_config():\n  from _shared import NAME\n  return NAME"
        (folder / "config.py").write_text(config)
    path = [*sys.path]
    for name in ("a", "b", "a"):
        assert call_config_file(str(tmp_path / name / "config.py"), "get_config") == name
    assert sys.path == path and "_shared" not in sys.modules


def test_a_copy_of_a_shipped_config_works_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(shipped()["tasks/digits_supcon"].read_text())
    assert load_config("mine.py") == load_config("tasks/digits_supcon")


def test_shipped_weights_are_found_by_name():
    assert resolve("package:resnet20_cifar10").is_file()
    with pytest.raises(UserError, match="Did you mean 'resnet20_cifar10'"):
        resolve("package:resnet20_cifar")


def test_no_shipped_config_names_a_file_of_the_package():
    for name, file in shipped().items():
        assert "finetune_jax/weights" not in file.read_text(), name


def test_the_licence_is_the_one_that_the_package_declares():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_lock_meets_the_requirements_and_names_no_host():
    from packaging.requirements import Requirement

    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|/(opt|tmp|home|root)/|--(extra-)?index-url|--find-links", text)
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", text, re.M):
        pins.setdefault(_normal(name), set()).add(version)
    extra = PROJECT["optional-dependencies"]
    required = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    wanted = [Requirement(line) for line in [*required, *extra["dev"], *extra["docs"]] if line]
    for requirement in wanted:
        if requirement.name != "finetune_jax":
            found = pins[_normal(requirement.name)]
            assert all(requirement.specifier.contains(version) for version in found), requirement


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_shipped_weight_file_has_a_card_with_the_licence():
    for weights in (ROOT / "finetune_jax" / "weights").glob("*.safetensors"):
        card = json.loads(weights.with_suffix(".json").read_text())
        assert card["licence"] == PROJECT["license"]
