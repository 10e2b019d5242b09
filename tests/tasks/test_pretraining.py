"""Self-supervised pre-training: the scores, and loading the trained leaves into plain models."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax.artifact import Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import score
from finetune_jax.models import build, initial_variables
from finetune_jax.models.pretraining import (
    masked_autoencoder,
    patch_order,
    visible,
    with_projection,
)
from finetune_jax.pretrained import save_native
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

AUGMENT = "random_crop(pad=2) + flip"
MASKED = "masked(mask=0.75, width=8, depth=1, heads=2)"


def same_stages(pretrained, config, stages):
    """The start variables of a config; those of `stages` must equal the artifact's."""
    variables, manifest = load_variables(open_setup(config))
    artifact = Artifact.load(pretrained)
    for stage in stages:
        jax.tree.map(
            np.testing.assert_array_equal,
            variables["params"][stage],
            artifact.variables["params"][stage],
        )
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "supcon"])
def test_contrastive_pretraining(name, tiny, tmp_path):
    config = tiny(name, data__augment=AUGMENT, scheme="full", train__accumulate=2)
    result = train(open_setup(config), tmp_path / "run")
    found = result["test"]
    assert np.isfinite(found["loss"]) and 0 <= found["knn_accuracy"] <= 1
    # The command gives the score of the run, because the random draws are the same every time.
    again = score(config, "test", Artifact.load(tmp_path / "run"))
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert again["knn_accuracy"] == found["knn_accuracy"]
    # The encoder loads into the plain model; the projection is dropped, and a line reports this.
    config = tiny("classification", pretrained__path=str(tmp_path / "run" / "artifact"))
    config.pretrained.new_head = True
    stages = ("stem", "block_0", "block_1", "norm")
    manifest = same_stages(tmp_path / "run", config, stages)
    dropped = [r for r in manifest["rows"] if r["decision"] == "dropped"]
    assert {r["source_name"].split("/")[1] for r in dropped} == {"projection"}
    assert "contrastive pre-training" in json.dumps(dropped)


def test_contrastive_views_are_two_draws_in_a_row(tiny):
    task = open_setup(tiny("simclr", data__augment=AUGMENT)).task
    images = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 4, 4, 3))

    def draw(key):
        return images + jax.random.uniform(key), {"label": jnp.arange(3)}

    views, batch = task.inputs(jax.random.key(0), draw)
    whole, part = np.divmod(np.asarray(views[:, 0, 0, 0]), 1)
    assert whole.tolist() == [0, 0, 1, 1, 2, 2]
    assert part[0] != part[1] and np.allclose(part[::2], part[0])
    assert batch["label"].tolist() == [0, 1, 2]


def test_what_contrastive_pretraining_cannot_do(tiny):
    with pytest.raises(UserError, match="data.augment: simclr compares views of an image"):
        open_setup(tiny("simclr"))
    with pytest.raises(UserError, match="unknown argument 'temprature'. Did you mean 'temperature"):
        open_setup(tiny("simclr", "ntxent(temprature=1)", data__augment=AUGMENT))
    task = open_setup(tiny("supcon", data__augment=AUGMENT)).task
    with pytest.raises(UserError, match="remove mixup and cutmix"):
        task.inputs(jax.random.key(0), lambda key: (jnp.zeros(2), {"mix": jnp.ones(2)}))


def test_a_projection_of_no_width_is_none(tiny):
    model = build("tiny_vit", 4)
    assert with_projection(model, 0) is model
    made = with_projection(model, 5)
    assert made == with_projection(build("tiny_vit", 4), 5)
    assert made.stages == (*model.stages[:-1], "projection", "head")
    variables = initial_variables(made, 16, stages=())
    assert variables["params"]["projection"]["dense"]["kernel"].shape == (16, 5)
    assert variables["params"]["head"]["kernel"].shape == (5, 4)


@pytest.mark.slow
def test_what_was_pretrained_loads_into_the_plain_model(tiny, tmp_path):
    """From a file of the pre-trained leaves, with the stage that is left behind named as such."""
    plain = build("tiny_vit", 10)
    for stage, model in (("decoder", autoencoder()), ("projection", with_projection(plain, 8))):
        variables = initial_variables(model, 16, seed=3)
        save_native(tmp_path / "pretrained.safetensors", variables, {})
        config = tiny("classification")
        config.pretrained.path = str(tmp_path / "pretrained.safetensors")
        config.pretrained.new_head = True
        loaded, manifest = load_variables(open_setup(config))
        for name in plain.stages[:-1]:
            jax.tree.map(
                np.testing.assert_array_equal,
                loaded["params"][name],
                variables["params"][name],
            )
        dropped = [r for r in manifest["rows"] if r["decision"] == "dropped"]
        assert {r["source_name"].split("/")[1] for r in dropped} == {stage}
        assert all("pre-training" in r["reason"] for r in dropped)


@pytest.mark.slow
def test_masked_pretraining(tiny, tmp_path):
    config = tiny("mae", MASKED, scheme="full")
    result = train(open_setup(config), tmp_path / "run")
    again = score(config, "test", Artifact.load(tmp_path / "run"))
    assert again["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert again["loss_low"] < again["loss"] < again["loss_high"]
    config = tiny("classification", pretrained__path=str(tmp_path / "run" / "artifact"))
    config.pretrained.new_head = True
    stages = ("stem", "block_0", "block_1", "norm")
    manifest = same_stages(tmp_path / "run", config, stages)
    dropped = [r for r in manifest["rows"] if r["decision"] == "dropped"]
    assert {r["source_name"].split("/")[1] for r in dropped} == {"decoder"}


def autoencoder(**options):
    return masked_autoencoder(
        build("tiny_vit", 1), 16, **{"mask": 0.75, "width": 8, "depth": 1, "heads": 2, **options}
    )


@pytest.mark.slow
def test_the_encoder_sees_the_visible_patches_alone():
    model, key = autoencoder(), jax.random.key(3)
    variables = initial_variables(model, 16)
    # The head starts at zero, so that all outputs are equal; the test sets other values.
    variables["params"]["head"]["kernel"] = jax.random.normal(key, (8, 48))
    images = jax.random.normal(key, (2, 16, 16, 3))
    see = jax.jit(lambda x: model.apply(variables, x, stop="block_0"))
    tokens, order = see({"image": images, "key": key})
    assert visible(16, 0.75) == 4
    assert tokens.shape == (2, 1 + 4, 16)
    np.testing.assert_array_equal(order, patch_order(key, 2, 16))
    # The encoder gets the tokens of the stem in this order, after the class token.
    plain = build("tiny_vit", 1)
    stem = jax.jit(lambda x: plain.apply(variables, x, stop="block_0"))(images)
    for i in range(2):
        seen = stem[i, np.asarray([0, *(1 + order[i, :4])])]
        np.testing.assert_allclose(tokens[i], seen, atol=1e-6)
    # A hidden patch does not change the outputs; a visible patch does.
    forward = jax.jit(lambda x: model.apply(variables, {"image": x, "key": key}))
    before = forward(images)
    assert before.shape == (2, 16, 48)
    for place, differs in ((int(order[0, 10]), False), (int(order[0, 1]), True)):
        row, column = divmod(place, 4)
        changed = images.at[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].add(1.0)
        assert bool(jnp.any(forward(changed)[0] != before[0])) == differs


@pytest.mark.slow
def test_stages_of_an_autoencoder_run_in_parts():
    model = autoencoder()
    variables = initial_variables(model, 16)
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 48))
    x = {"image": jnp.ones((2, 16, 16, 3)), "key": jax.random.key(1)}

    def forward(x, start=None, stop=None):
        return jax.jit(lambda x: model.apply(variables, x, start=start, stop=stop))(x)

    whole = forward(x)
    for stage in ("block_1", "decoder", "head"):
        part = forward(forward(x, stop=stage), start=stage)
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-5)
    # All patches of images are visible if the input has no key.
    tokens, _ = jax.eval_shape(lambda x: model.apply(variables, x, stop="norm"), x["image"])
    assert tokens.shape == (2, 17, 16)
    assert autoencoder() == model and autoencoder(depth=2) != model


def test_an_autoencoder_needs_a_vision_transformer_of_several_patches():
    options = {"mask": 0.75, "width": 8, "depth": 1, "heads": 2}
    make = functools.partial(masked_autoencoder, **options)
    with pytest.raises(UserError, match="needs a Vision Transformer .*; found ResNetCifar"):
        make(build("resnet20_cifar", 1), 32)
    with pytest.raises(UserError, match="not pooled before its head, such as vit_ti16; found ViT"):
        make(build("siglip_b16", 1), 32)
    with pytest.raises(UserError, match="4 pixels are one patch of 4"):
        make(build("tiny_vit", 1), 4)
    with pytest.raises(UserError, match="3 heads do not divide the decoder's width 8"):
        make(build("tiny_vit", 1), 16, heads=3)
