"""Files of every version since the first are still opened; `data/golden/write.py` writes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune_jax import __version__
from finetune_jax import config as config_lib
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.artifact import Artifact
from finetune_jax.pretrained.sources import resolve
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train
from finetune_jax.verification import DAMAGED, verify

GOLDEN = Path(__file__).parent / "data" / "golden"
FOLDERS = sorted(path for path in GOLDEN.iterdir() if path.is_dir() and path.name[0].isdigit())
BASE = "package:resnet20_cifar10"

by_version = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


def test_this_version_has_its_files_and_they_are_small():
    assert __version__ in {folder.name for folder in FOLDERS}
    for folder in FOLDERS:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 200 * 1024, folder


@by_version
def test_nothing_in_the_files_is_damaged(folder):
    assert [f for f in verify(folder / "run") if f.state == DAMAGED] == []


@by_version
def test_the_checkpoint_is_continued(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    config = config_lib.from_json(json.loads((run / "config.json").read_text()))
    result = train(open_setup(config), run)
    assert "resuming from step 4" in capsys.readouterr().err
    assert result["steps"] == 6
    ours, theirs = (
        Artifact.load(path, base=resolve(BASE)).variables["params"]["head"]
        for path in (run, folder / "artifact")
    )
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-2, atol=1e-4, err_msg=name)


@by_version
def test_the_artifact_gives_the_outputs_that_it_gave(folder):
    images = (np.arange(4 * 16 * 16 * 3) * 7919 % 251).astype(np.uint8).reshape(4, 16, 16, 3)
    artifact = Artifact.load(folder / "artifact", base=resolve(BASE))
    found = artifact.outputs({"image": images})
    np.testing.assert_allclose(found, np.load(folder / "outputs.npy"), rtol=1e-3, atol=1e-3)


@by_version
def test_the_ledger_is_read(folder, tmp_path):
    path = shutil.copy(folder / "results.jsonl", tmp_path)
    assert len(Ledger(Path(path))) == 2
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert [line["row"] for line in lines] == ["head", "bad"]
