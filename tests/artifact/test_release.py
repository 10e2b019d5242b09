"""What leaves the house tells nothing about the house."""

import getpass
import json
import re
import socket

import numpy as np
import pytest

from finetune_jax.artifact import Artifact
from finetune_jax.artifact.release import release
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, seal, write_json

TELLING = "patients_of_dr_jones"


@pytest.fixture
def telling(short_run, tmp_path):
    """An artifact whose card has paths with a telling name at every place where texts stand."""
    folder = tmp_path / TELLING / "run" / "artifact"
    folder.mkdir(parents=True)
    for path in (short_run / "artifact").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    card = read_json(folder / "artifact.json")
    del card["sha256"]
    card["base"]["file"] = f"/home/{TELLING}/weights.safetensors"
    card["made_of"]["data"] = {**card["made_of"].get("data", {}), "folder": TELLING}
    card["task"]["loss"] = f"distill(teacher='{TELLING}/best')"
    card["plan"]["scheme"] = f"last_k(1) + other(file='~/{TELLING}/scheme.txt')"
    card["quantization"] = {"run": TELLING, "how": "int8"}
    write_json(folder / "artifact.json", seal(card))
    return folder.parent


def test_a_released_artifact_has_no_telling_name_and_predicts_the_same(
    telling, short_run, tmp_path
):
    output = tmp_path / "out"
    lines = release(telling, output)
    assert any(line.startswith("made_of") for line in lines) and any("run" in x for x in lines)
    for path in output.iterdir():
        content = path.read_bytes()
        assert not [name for name in (TELLING, "/home/", "/tmp/") if name.encode() in content]
        words = re.findall(r"\w+", content.decode()) if path.suffix == ".json" else []
        assert not {socket.gethostname(), getpass.getuser()} & {*words}
    assert {p.name for p in output.iterdir()} == {"artifact.json", "model.safetensors"}
    card = json.loads((output / "artifact.json").read_text())
    before = read_json(telling / "artifact" / "artifact.json")
    for key in ("fingerprint", "preprocess", "scores", "deltas"):
        assert card[key] == before[key]
    assert card["base"] == {**before["base"], "file": "weights.safetensors"}
    assert card["task"]["class_names"] == before["task"]["class_names"]
    assert [x["path"] for x in card["plan"]["leaves"]] == [
        x["path"] for x in before["plan"]["leaves"]
    ]
    pixels = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    assert Artifact.load(output).predict(pixels) == Artifact.load(short_run).predict(pixels)


def test_an_output_with_content_is_refused(short_run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        release(short_run, tmp_path)
    with pytest.raises(UserError, match="no artifact here"):
        release(tmp_path, tmp_path / "out")
