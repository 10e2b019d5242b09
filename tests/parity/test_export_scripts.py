"""The scripts of docs/export.md run in a process that cannot import this package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
pytest.importorskip("transformers", reason="not run: needs requirements-reference.txt")

from commands import ROOT  # noqa: E402
from exported_models import SMALL_BERT, SMALL_VIT, hub_base, made  # noqa: E402
from PIL import Image  # noqa: E402

from finetune_jax.export.formats import format_of  # noqa: E402

# Model, names and a word of the output, by the folder that a script opens.
_FOLDERS = {
    "mine_timm": (SMALL_VIT, "timm", "(ant|bee|cat)"),
    "mine_transformers": (SMALL_VIT, "transformers", "'label': '(ant|bee|cat)', 'score'"),
    "mine_bert": (
        f"{SMALL_BERT[:-1]}, pooling='pooler')",
        "transformers",
        "'label': '(ant|bee|cat)",
    ),
    "mine_sentences": (f"{SMALL_BERT[:-1]}, pooling='mean')", "", r"\[\[.*\]\s+\[.*\]\]"),
}
_WITHOUT = "import sys; sys.modules['finetune_jax'] = None; exec(open('script.py').read())"


def blocks() -> list[str]:
    """The scripts of the page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)


def scripts() -> dict[str, str]:
    """The scripts of the page by the folder that they open."""
    return {
        folder: block
        for block in blocks()
        for folder in _FOLDERS
        if re.search(f'[":]{folder}', block)
    }


def run_script(folder: Path, script: str) -> str:
    """The output of a script that runs in a folder, without this package."""
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    (folder / "script.py").write_text(script)
    Image.new("RGB", (50, 40), (200, 30, 90)).save(folder / "photo.jpg")
    command = [sys.executable, "-c", _WITHOUT]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("name", "base", "spec", "names"),
    [
        ("mine_peft", "base_timm", SMALL_VIT, "timm"),
        ("mine_peft_text", "base_bert", f"{SMALL_BERT[:-1]}, pooling='pooler')", "transformers"),
    ],
)
def test_a_script_puts_an_adapter_onto_its_base(tmp_path, name, base, spec, names):
    pytest.importorskip("peft", reason="not run: needs requirements-reference.txt")
    size = 12 if "bert" in spec else 32
    model = made(spec, names, size=size, scheme="lora(rank=3) + head")
    hub_base(model, tmp_path / base)
    (tmp_path / name).mkdir()
    format_of("peft").write(model, tmp_path / name)
    [script] = [block for block in blocks() if f'"{name}"' in block]
    run_script(tmp_path, script + "print(type(model).__name__)\n")


@pytest.mark.parametrize("name", _FOLDERS)
def test_a_script_of_the_page_runs_without_this_package(tmp_path, name):
    spec, names, expected = _FOLDERS[name]
    model = made(spec, names, size=12 if "bert" in spec else 32)
    (tmp_path / name).mkdir()
    format_of("safetensors").write(model, tmp_path / name)
    assert re.search(expected, run_script(tmp_path, scripts()[name]), re.S)
    usage = format_of("safetensors").usage(model).replace("FOLDER", repr(name))
    assert run_script(tmp_path, usage) or "sentence" in usage
