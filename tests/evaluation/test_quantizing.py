"""The command that quantizes a run: what it writes, says and refuses."""

import numpy as np
import pytest
from commands import run_command

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.quantizing import Comparison, quantize_run, within_budget
from finetune_jax.files import read_json
from finetune_jax.quantization import FORMATS, dequantize, quantized_leaves


@pytest.fixture(scope="module")
def comparison(short_run):
    return Comparison.open(open_run(short_run), "test", 40)


@pytest.fixture(scope="module")
def quantized(comparison, short_run, tmp_path_factory):
    """(report, folder) of the short run with its blocks in int8 and its head as it was."""
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    how = "head=keep, .*=int8"
    return quantize_run(comparison, how, "test", short_run, folder), folder


def test_the_artifact_computes_with_the_dequantized_weights(quantized, comparison, short_run):
    report, folder = quantized
    artifact, before = Artifact.load(folder), Artifact.load(short_run)
    found = quantized_leaves(artifact.variables["params"])
    assert set(found) == {path for path in comparison.weights if not path.startswith("head")}
    flat = tree.flatten(before.variables["params"])
    for path, leaf in tree.flatten(dequantize(artifact.variables["params"])).items():
        largest = np.abs(flat[path]).max()
        assert np.abs(np.asarray(leaf) - flat[path]).max() <= largest / 250, path
    size = (folder / "artifact" / "model.safetensors").stat().st_size
    assert size < 0.35 * (short_run / "artifact" / "model.safetensors").stat().st_size
    assert report["weight_bytes_float32"] / report["weight_bytes"] > 3.7
    assert report["bytes"] == tree.nbytes(artifact.variables)


def test_the_figures_are_of_the_same_examples(quantized, comparison):
    report, folder = quantized
    artifact = Artifact.load(folder)
    examples = comparison.examples
    batch = {"image": np.stack([artifact.encode(examples[i])["image"] for i in range(40)])}
    ours, theirs = artifact.outputs(batch), comparison.artifact.outputs(batch)
    assert report["n"] == 40 == report["scores"]["n_scored"] == report["scores_float32"]["n_scored"]
    gaps = np.abs(ours - theirs)
    np.testing.assert_allclose(report["largest_logit_difference"], gaps.max(), rtol=1e-4)
    np.testing.assert_allclose(report["mean_logit_difference"], gaps.mean(), rtol=1e-4)
    assert report["agreement"] == np.mean(ours.argmax(1) == theirs.argmax(1))
    labels = np.array([artifact.encode(examples[i])["label"] for i in range(40)])
    assert report["scores"]["accuracy"] == pytest.approx(np.mean(ours.argmax(1) == labels))
    card = read_json(folder / "artifact" / "artifact.json")
    assert card["quantization"]["agreement"] == report["agreement"]


def test_a_quantized_run_is_evaluated_like_any_other(quantized):
    report, folder = quantized
    evaluator = open_run(folder)
    scores = evaluator.scores(evaluator.observe("test"))
    assert scores["n_scored"] >= 40
    with pytest.raises(UserError, match="quantized already"):
        Comparison.open(evaluator, "test")


def test_static_scales_of_inputs_are_measured_on_training_examples(comparison, short_run, tmp_path):
    scales = comparison.input_scales
    assert set(scales) == set(comparison.weights)
    examples = comparison.evaluator.examples("train")
    assert len(examples) == 64
    batch = {"image": np.stack([comparison.artifact.encode(x)["image"] for x in examples])}
    pixels = np.asarray(comparison.artifact.preprocess.device(batch))
    first = next(path for path in scales if path.startswith("stem"))
    expected = np.abs(pixels).reshape(64, -1).max(1).mean() / 127.5
    assert scales[first] == pytest.approx(expected, rel=1e-5)
    report = quantize_run(comparison, "w8a8_static", "test", short_run, tmp_path / "static")
    artifact = Artifact.load(tmp_path / "static")
    leaves = tree.flatten(artifact.variables["params"])
    for path, scale in scales.items():
        assert leaves[f"{path}/input_scale"] == np.float32(scale)
    assert 0 < report["mean_logit_difference"] < 0.1 * report["largest_logit"]


@pytest.mark.slow
def test_the_choice_within_a_budget_fits_and_is_cheap(comparison):
    formats = [FORMATS["int8"], FORMATS["int4"]]
    total = tree.nbytes(comparison.artifact.variables)
    text, rows = within_budget(comparison, formats, int(0.4 * total))
    stages = {row["stage"] for row in rows}
    assert len(rows) == 2 * len(stages)
    chosen = dict(part.split("=", 1) for part in text.split(", "))
    assert set(chosen) == stages and "keep" in chosen.values()
    saved = {(row["stage"], row["format"]): row["saved_bytes"] for row in rows}
    assert total - sum(saved.get(item, 0) for item in chosen.items()) <= 0.4 * total
    with pytest.raises(UserError, match="the smallest choice of int8 takes"):
        within_budget(comparison, formats[:1], int(0.2 * total))


def test_an_output_folder_with_content_is_refused(comparison, short_run, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        quantize_run(comparison, "int8", "test", short_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_the_command(short_run, tmp_path):
    run = f"--workdir={short_run}"
    done = run_command("quantize", run, "--how=int8", f"--output={tmp_path / 'int8'}")
    assert done.returncode == 0, done.stderr
    assert "of 50 agree" in done.stdout and "artifact" in done.stdout
    done = run_command(
        "quantize", run, "--how=int8, int4", "--sensitivity", f"--output={tmp_path / 'stages'}"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stages" / "sensitivity.png").stat().st_size > 10_000
    assert len(read_json(tmp_path / "stages" / "sensitivity.json")["rows"]) % 2 == 0
    done = run_command("evaluate", f"--workdir={tmp_path / 'int8'}")
    assert done.returncode == 0, done.stderr
    done = run_command("quantize", run, "--how=blocks=int8", f"--output={tmp_path / 'none'}")
    assert done.returncode == 2 and "no stage and no weight" in done.stderr
    assert not (tmp_path / "none").exists()
