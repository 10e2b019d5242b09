"""Every command of the README and of the pages without a test of their own runs as it is written.

Names that stand for files of the reader are replaced, and runs are shortened.
"""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from commands import ROOT, run_in
from PIL import Image
from sklearn.datasets import load_digits

from finetune_jax.models import build, initialise
from finetune_jax.pretrained import save_native

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if "tutorial" not in page.stem),
]
# Commands that are not run here, by their beginning or by a part of them, and why.
NOT_RUN = {
    "make quickstart": "tests/test_run.py runs the quickstart",
    "make test": "it runs this test",
    "make lint": "it has no result but its status",
    "make docs": "tests/test_docs.py builds the pages",
    "pretrained.path=hf:BAAI/bge-small-en-v1.5": "needs a network",
    "--config=configs/ablations/quickstart.py": "the README has the same study",
    "--config=eval_cifar10:20": "needs CIFAR-10 as a TFDS data set",
}
# Commands that need an extra, by a part of them, and the module that must be there.
NEEDS = {"signer.pem": "model_signing", "mine.key": "pyrage"}
REPLACED = {
    "--model=resnet18 --weights=published": "--model=resnet20 --weights=package:resnet20_cifar10",
    "NEW_PHOTOS": "new",
    "PHOTOS": "photos",
    "resnet20-12fca82f.th": "shipped.safetensors",
    "IMAGE.png": "new/1.png",
    "FOLDER TABLE.csv": "new table.csv",
    "--config=…": "--config=quickstart",
    "--config.model.name='vit(heads=3)'": "--config.model.name='vit(heads=3)' --workdir=runs/vit",
}
FEW = "--config.train.steps=4 --config.data.train='train[:64]'"
TRAIN = f"python -m finetune_jax.train --config=quickstart {FEW}"
# Commands that come before a command: the page says that these folders are there.
BEFORE = {
    "finetune_jax.average": [
        f"{TRAIN} --config.scheme=linear_probe --workdir=runs/probe",
        f"{TRAIN} --config.scheme=full --workdir=runs/full",
    ]
}


def commands() -> list[str]:
    """The commands in the blocks of the pages, in their order, each once."""
    found = []
    for page in PAGES:
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M):
            if kind not in ("", "sh", "bash"):
                continue
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [
                line.split(" #")[0].rstrip()
                for line in lines
                if re.match(r"(finetune-jax|python|make) ", line)
            ]
    return list(dict.fromkeys(found))


def files(folder: Path) -> None:
    """Writes the files that stand for those of the reader."""
    digits = load_digits()
    for number in range(80):
        label = digits.target[number]
        path = folder / ("photos" if number % 8 else "new") / f"digit_{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype("uint8")).resize((32, 32)).save(path)
    for name in ("new/1.png", "more/deep/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[1] * 15.9).astype("uint8")).save(folder / name)
    (folder / "table.csv").write_text("image\nnew/1.png\n")
    shipped = ROOT / "finetune_jax" / "weights" / "resnet20_cifar10.safetensors"
    shutil.copy(shipped, folder / "shipped.safetensors")
    vit = initialise(build("vit_ti16", 10, image_size=32), 32, jax.random.key(0))
    save_native(folder / "vit.safetensors", vit, {})


def as_run(command: str) -> list[str]:
    """The command for the files of this test, shortened where it trains."""
    for old, new in REPLACED.items():
        command = command.replace(old, new)
    if re.search(r"(finetune_jax\.|finetune-jax )(train|ablate)\b", command):
        command += f" {FEW}"
    if "vit(" in command:
        command += " --config.data.image_size=32 --config.scheme=full"
    return shlex.split(command)


def test_every_command_that_is_not_run_has_a_reason():
    found = commands()
    assert len(found) > 20
    for part in NOT_RUN:
        assert sum(part in command for command in found) == 1, part
    for part in REPLACED:
        assert any(part in command for command in found), part


@pytest.mark.slow
def test_the_commands_of_the_pages_run(tmp_path):
    files(tmp_path)
    for command in commands():
        lacking = any(p in command and find_spec(module) is None for p, module in NEEDS.items())
        if lacking or any(part in command for part in NOT_RUN):
            continue
        for part, before in BEFORE.items():
            for line in before if part in command else ():
                run_in(tmp_path, shlex.split(line))
        run_in(tmp_path, as_run(command))
    for name in (
        "predictions.csv",
        "mine.html",
        "mine_hub/agreement.json",
        "runs/suggest",
        "runs/between/artifact/artifact.json",
        "runs/vit/result.json",
        "runs/ablation/report/index.html",
    ):
        assert (tmp_path / name).exists(), name
