"""The model card: the hub's metadata, what the run knows, and nothing about the machine."""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
import socket
from pathlib import Path

import pytest
import yaml
from exported_models import SMALL_VIT, made

from finetune_jax.export.card import TO_FILL, model_card

FOUND = {
    "examples": 20, "argmax_agreement": 1.0, "max_abs_difference": 2e-7, "batch_sizes": [1, 7, 64],
}  # fmt: skip
SECRET = "/home/alice_at_work/secret_project"
CONFIG = {
    "scheme": "lora(rank=3) + head",
    "batch_norm": "frozen",
    "seed": 7,
    "data": {"source": f"folder:{SECRET}/photos"},
    "pretrained": {"path": f"{SECRET}/vit.safetensors"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 0},
}
RESULT = {
    "steps": 30, "selected_step": 20, "seconds": 3.2, "train_flops": 4.2e9,
    "trainable_params": 1000, "total_params": 30_000,
    "audit": {"frozen_leaves": 31, "frozen_statistics": 0, "moved_leaves": 9, "unmoved_leaves": 1},
    "phases": [{"scheme": f"lora(rank=3) + head(teacher='{SECRET}/teacher')"}],
}  # fmt: skip
MADE_OF = {
    "data": {"splits": {"train": 120, "test": 40}, "content": {"alice_photos/1.png": "ab12"}},
    "versions": {"jax": "0.10.2"},
}
EVALUATION = {
    "split": "test", "accuracy": 0.9, "ece": 0.0312, "n_scored": 40,
    "corruptions": {"mean": {"accuracy": 0.71}, "other": {"accuracy": 0.5, "path": SECRET}},
    "against": {"other": f"{SECRET}/runs/b", "difference": 0.1},
}  # fmt: skip


def card(**changes) -> str:
    model = made(SMALL_VIT, "timm", scheme="lora(rank=3) + head")
    about = model.artifact.card | {
        "base": {"file": "vit.safetensors", "sha256": "5f" * 32, "origin": "timm"},
        "scores": {"test": {"accuracy": 0.9, "accuracy_low": 0.81, "accuracy_high": 0.95,
                            "loss": 0.31, "n_scored": 40}},
        "made_of": MADE_OF,
    }  # fmt: skip
    artifact = dataclasses.replace(model.artifact, card=about)
    options = {"config": CONFIG, "result": RESULT, "evaluation": EVALUATION, **changes}
    return model_card(
        dataclasses.replace(model, artifact=artifact, **options), "safetensors", FOUND
    )


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_metadata_is_what_the_hub_reads():
    found = metadata(card())
    assert found["library_name"] == "timm"
    assert found["pipeline_tag"] == "image-classification"
    assert found["license"] == "other"
    assert found["metrics"] == ["accuracy"]
    [result] = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9, "name": "accuracy"}]
    assert result["task"] == {"type": "image-classification"}
    assert "base_model" not in found and "datasets" not in found


def test_a_base_and_data_of_the_hub_are_named():
    config = CONFIG | {
        "pretrained": {"path": "hf:timm/some-vit@0123abc"}, "data": {"source": "hf:owner/birds:v2"},
    }  # fmt: skip
    text = card(config=config)
    found = metadata(text)
    assert found["base_model"] == "timm/some-vit"
    assert found["datasets"] == ["owner/birds"]
    assert "[timm/some-vit](https://huggingface.co/timm/some-vit)" in text


def test_the_card_says_what_trained_what_it_scored_and_what_is_open():
    text = card()
    assert "| test | accuracy | 90.0 % [81.0, 95.0] | 40 |" in text
    assert "|  | expected calibration error | 3.1 % |" in text
    assert "| corruptions | mean, accuracy | 71.0 % |" in text
    assert "31 frozen leaves" in text and "9 trained leaves have moved, and 1 have not" in text
    assert re.search(r"\| lora\(rank=3\) \| block_0, block_1 \| 8 \|", text)
    assert re.search(r"\| frozen \| stem, block_0, block_1, norm \|", text)
    assert "1,000 of 30,000" in text and "4.2e+09 FLOPs" in text
    assert "120 train, 40 test" in text and "jax 0.10.2" in text
    assert "5f" * 32 in text
    assert f"## Intended use\n\n{TO_FILL}" in text
    assert re.search("Digest of their content: `[0-9a-f]{16,}`", text)
    assert "stored as the folder that timm opens." in text
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert "timm.create_model" in code and len(code.splitlines()) <= 10


def test_what_was_not_run_is_said():
    text = card(evaluation={}, result={}, config={})
    assert "not run" in text
    assert "Audit" not in text and "FLOPs" not in text


def _private() -> list[str]:
    words = [SECRET, "alice", "1.png", "secret_project", socket.gethostname(), "/home/", "/tmp/",
             getpass.getuser(), str(Path.home()), os.getcwd()]  # fmt: skip
    return [word for word in words if len(word) > 3 and word not in ("root", "/root")]


def test_the_card_has_no_paths_no_users_and_no_hosts():
    text = card()
    assert "teacher='teacher'" in text
    assert [word for word in _private() if word in text] == []


@pytest.mark.slow
def test_an_export_of_a_run_has_no_paths_in_any_file(tmp_path, rng):
    from commands import run_command
    from PIL import Image

    from finetune_jax.config import default
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    home = tmp_path / "alice_at_work"
    for i in range(24):
        path = home / "secret_photos" / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), "uint8")).save(path)
    config = default()
    config.model.name = SMALL_VIT
    config.data.source, config.data.image_size = f"folder:{home}/secret_photos", 16
    config.scheme, config.train.steps, config.train.batch_size = "full", 2, 8
    config.log.tensorboard, config.eval.batch_size = False, 8
    train(open_setup(config), home / "run")
    for format_, names in (
        ("safetensors", "--names=timm"),
        ("orbax", "--names="),
    ):
        process = run_command(
            "export", f"--workdir={home}/run", f"--format={format_}", names,
            f"--output={tmp_path}/out_{format_}",
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        for file in (tmp_path / f"out_{format_}").rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                found = [w for w in [*_private(), "secret", str(tmp_path)] if w.encode() in data]
                assert not found, (file, found)
    readme = (tmp_path / "out_safetensors" / "README.md").read_text()
    assert "A folder of images." in readme and "trained from random weights" in readme


def test_a_model_without_scores_has_a_card_without_them():
    card = model_card(made(SMALL_VIT), "orbax", FOUND)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] and "model-index" not in metadata and "metrics" not in metadata
