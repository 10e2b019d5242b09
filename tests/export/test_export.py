"""The export command and the formats that need no further library."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from exported_models import SMALL_BERT, made

from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.export import Model, export
from finetune_jax.export.formats import format_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def exported(short_run, images, tmp_path_factory):
    """(folder, artifact) of the short run as a program."""
    folder = tmp_path_factory.mktemp("exported") / "program"
    artifact = Artifact.load(short_run)
    found = export(Model(artifact), "stablehlo", folder, examples_of(artifact, images))
    assert found["argmax_agreement"] == 1 and found["max_abs_difference"] < 1e-4
    return folder, artifact


def examples_of(artifact, folder):
    return [artifact.example(path) for path in sorted(folder.glob("*.png"))]


def in_another_process(code, folder, *arguments):
    """Runs code that cannot import this package, in a folder; returns what the code prints."""
    hidden = "import sys; sys.modules['finetune_jax'] = None\n"
    process = subprocess.run(
        [sys.executable, "-c", hidden + code, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def script_of(name, number=0):
    """A consumer script of a format in docs/export.md."""
    section = PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[number]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    return code


def test_a_program_runs_without_this_package_on_an_image_of_any_size(exported, images):
    folder, artifact = exported
    path = sorted(images.glob("*.png"))[1]
    printed = in_another_process(script_of("stablehlo"), folder, path)
    [expected] = artifact.predict([path])
    label, share = printed.split()
    assert label == expected["label"]
    assert float(share) == pytest.approx(expected["probabilities"][label], abs=1e-4)


def test_the_program_is_for_three_platforms_and_any_batch(exported):
    from jax import export as jax_export

    folder, artifact = exported
    program = jax_export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    run = format_of("stablehlo").opened(Model(artifact), folder)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        run({"image": pixels}), artifact.outputs({"image": pixels}), atol=1e-4
    )
    described = json.loads((folder / "model.json").read_text())
    assert described["classes"] == list(artifact.task.class_names)
    assert described["outputs"]["probabilities"] == "float32[b, 10]"


@pytest.mark.slow
def test_the_command_compares_on_the_test_split_and_says_so(short_run, tmp_path):
    process = run_command(
        "export", f"--workdir={short_run}", "--format=orbax", f"--output={tmp_path / 'out'}"
    )
    assert process.returncode == 0, process.stderr
    assert "100.00% of the answers agree" in process.stdout and "n=50" in process.stdout
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert found["examples"] == 50 and found["batch_sizes"] == [1, 7, 64]
    assert found["argmax_agreement"] == 1.0 and found["max_abs_difference"] < 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "variables", "agreement.json", "README.md",
    }  # fmt: skip


def test_another_model_is_noticed_and_nothing_is_left(short_run, images, tmp_path, monkeypatch):
    artifact = Artifact.load(short_run)
    orbax = format_of("orbax")
    right = orbax.opened

    def wrong(model, folder):
        return lambda batch: right(model, folder)(batch) + 1e-3 * np.arange(10, dtype=np.float32)

    monkeypatch.setattr(orbax, "opened", wrong)
    with pytest.raises(UserError, match="another model: on 3 examples an output differs by 0.009"):
        export(Model(artifact), "orbax", tmp_path / "out", examples_of(artifact, images))
    assert not list(tmp_path.iterdir())


def test_an_output_with_content_is_refused(short_run, images, tmp_path):
    artifact = Artifact.load(short_run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        export(Model(artifact), "orbax", tmp_path / "out", examples_of(artifact, images))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    with pytest.raises(UserError, match="the folder .*away does not exist"):
        export(Model(artifact), "orbax", tmp_path / "away" / "out", [])


@pytest.mark.slow
def test_the_program_of_a_model_of_texts_has_its_tokenizer(tmp_path):
    from tokenizers import Tokenizer

    model = made(f"{SMALL_BERT[:-1]}, pooling='mean')", size=12)
    format_of("stablehlo").write(model, tmp_path)
    text = "the cat sat on a mat"
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text)
    expected = model.artifact.preprocess.host({"text": text})
    assert found.ids == expected["input_ids"].tolist() and len(found.ids) == 12
