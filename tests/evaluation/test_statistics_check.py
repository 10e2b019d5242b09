"""The check of BatchNorm statistics: the formula, and the errors that the check finds."""

import jax
import numpy as np
import pytest
from PIL import Image

from finetune_jax import tree
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.evaluation.batch_norm import reestimate
from finetune_jax.evaluation.statistics_check import check_statistics, verdict
from finetune_jax.models import build, initialise
from finetune_jax.pretrained import __main__ as command
from finetune_jax.pretrained import save_native
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train


@pytest.fixture(scope="module")
def trained():
    """(model, variables whose statistics are those of some images, these images)."""
    model = build("resnet8_cifar", 5, image_size=16)
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    variables = initialise(model, 16, jax.random.key(0))
    for _ in range(4):  # each layer reads what the layer before normalises with its own statistics
        stats = reestimate(model, variables, [images], lambda batch: batch)
        variables = {**variables, "batch_stats": stats}
    return model, variables, images


def test_the_numbers_are_their_formulas(trained):
    model, variables, images = trained
    stem = variables["batch_stats"]["stem"]["norm"]
    changed = {
        **variables,
        "batch_stats": {
            **variables["batch_stats"],
            "stem": {"norm": {"mean": stem["mean"] + 1.0, "var": 4.0 * stem["var"]}},
        },
    }
    found = {fit.stage: fit for fit in check_statistics(model, changed, [images])}["stem"]
    epsilon = 1e-5  # of the norms of this family
    var = np.asarray(stem["var"])
    assert found.shift == pytest.approx(float(np.mean(1 / np.sqrt(4 * var + epsilon))), rel=1e-3)
    assert found.ratio == pytest.approx(np.log(4), rel=1e-2)
    assert not found.fits


def test_batches_of_other_sizes_count_by_their_images(trained):
    model, variables, images = trained
    whole = check_statistics(model, variables, [images])
    parts = check_statistics(model, variables, [images[:20], images[20:]])
    for one, two in zip(whole, parts, strict=True):
        assert (one.stage, one.shift, one.ratio) == (
            two.stage,
            pytest.approx(two.shift, abs=1e-4),
            pytest.approx(two.ratio, abs=1e-4),
        )


def test_the_first_stage_that_does_not_fit_is_named(trained):
    model, variables, images = trained
    assert [f.stage for f in check_statistics(model, variables, [images])] == [
        stage for stage in model.stages if stage != "head"
    ]
    assert verdict(check_statistics(model, variables, [images])).endswith("in every stage")
    stats = tree.flatten(variables["batch_stats"])
    for path in stats:
        if path.startswith("layer2") and path.endswith("var"):
            stats[path] = 5 * stats[path]
    wrong = {**variables, "batch_stats": tree.unflatten(stats)}
    text = verdict(check_statistics(model, wrong, [images]))
    assert "WARNING: from the stage layer2_block0 on" in text
    # Inputs of another range already differ in the first stage.
    text = verdict(check_statistics(model, variables, [255 * images]))
    assert "WARNING: from the stage stem on" in text


def test_without_norm_or_images_it_is_refused(trained):
    model, variables, _ = trained
    with pytest.raises(UserError, match="no images"):
        check_statistics(model, variables, [])
    vgg = build("vgg16", 5, image_size=32)
    with pytest.raises(UserError, match="no BatchNorm"):
        check_statistics(vgg, {"params": {}}, [])


def test_the_command_checks_a_file_against_a_folder(trained, tmp_path, capsys, monkeypatch):
    _, variables, _ = trained
    save_native(tmp_path / "x.safetensors", variables, {})
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    with flags_of(tmp_path / "images", ""):
        command.inspect([str(tmp_path / "x.safetensors")])
    out = capsys.readouterr().out
    assert "resnet8_cifar, 3 images of" in out and "shift of means" in out
    (tmp_path / "empty").mkdir()
    with flags_of(tmp_path / "empty", ""), pytest.raises(UserError, match="no image files"):
        command.inspect([str(tmp_path / "x.safetensors")])


def flags_of(folder, model):
    from absl import flags
    from absl.testing import flagsaver

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return flagsaver.flagsaver(check_statistics=str(folder), model=model)


def test_a_run_says_what_it_finds(small_config, tmp_path, capsys):
    config = load_config(str(small_config))
    config.pretrained.check_statistics, config.train.steps = True, 1
    train(open_setup(config), tmp_path / "run")
    # The weights are random, so their statistics are those of no image.
    assert "WARNING: from the stage stem on" in capsys.readouterr().err
