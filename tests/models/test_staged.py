import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.models import MODELS, Mode, build, initial_variables, initialise
from finetune_jax.models.vit import ViT


def small(name, classes, **options):
    if name == "vit":
        return ViT(width=96, depth=4, heads=3, patch=16, num_classes=classes, **options)
    return build(name, classes, image_size=32, **options)


@pytest.fixture(scope="module", params=["resnet8_cifar", "vit"])
def case(request):
    model = small(request.param, 5)
    variables = jax.jit(lambda k: initialise(model, 32, k))(jax.random.key(0))
    # A ViT head starts at zero, which would make every comparison of logits trivial.
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    return model, variables, images


def test_top_level_keys_are_the_stages(case):
    model, variables, _ = case
    assert set(variables["params"]) == set(model.stages)


def test_running_in_two_parts_equals_running_through(case):
    model, variables, images = case
    whole = model.apply(variables, images)
    for stage in (model.stages[1], model.stages[len(model.stages) // 2], "head"):
        middle = model.apply(variables, images, stop=stage)
        again = model.apply(variables, middle, start=stage)
        np.testing.assert_allclose(again, whole, atol=1e-6)


def test_features_are_what_the_head_reads(case):
    model, variables, images = case
    features = model.apply(variables, images, stop="head")
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"], model.apply(variables, images), atol=1e-5
    )


def test_recomputation_changes_no_value(case):
    model, variables, images = case
    recomputed = model.clone(remat=True)
    np.testing.assert_allclose(
        recomputed.apply(variables, images), model.apply(variables, images), atol=1e-6
    )


def test_dropout_is_active_in_the_named_stages_only():
    model = small("vit", 5, dropout=0.5)
    variables = initialise(model, 32, jax.random.key(0))
    images = jnp.ones((2, 32, 32, 3))

    def run(stages, seed):
        mode = Mode(dropout=frozenset(stages))
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply(variables, images, mode, stop="head", rngs=rngs))

    assert np.array_equal(run((), 0), run((), 1))
    assert not np.array_equal(run(("block_3",), 0), run(("block_3",), 1))


@pytest.mark.slow
def test_published_parameter_counts():
    # He et al. 2015, table 6, in millions; ViT at 224 pixels with 1000 classes.
    expected = {
        "resnet20_cifar": (10, 0.27),
        "resnet32_cifar": (10, 0.46),
        "resnet44_cifar": (10, 0.66),
        "resnet56_cifar": (10, 0.85),
        "resnet110_cifar": (10, 1.7),
        "vit_ti16": (1000, 5.7),
        "vit_s16": (1000, 22.1),
        "vit_b16": (1000, 86.6),
    }
    for name, (classes, millions) in expected.items():
        size = MODELS[name].image_size
        model = build(name, classes, image_size=size)
        abstract = jax.eval_shape(lambda k, m=model, s=size: initialise(m, s, k), jax.random.key(0))
        assert abs(tree.size(abstract["params"]) / 1e6 - millions) < 0.06 * millions, name


@pytest.mark.parametrize("name", ["resnet8_cifar", "vit"])
def test_a_stage_drawn_alone_is_the_same_stage(name):
    model = small(name, 4)
    whole = initial_variables(model, 32, seed=3)
    part = initial_variables(model, 32, seed=3, stages=("stem",))
    for collection, stages in whole.items():
        assert list(part[collection]) == list(stages)
        for stage, leaves in stages.items():
            for path, leaf in tree.flatten(leaves).items():
                found = tree.flatten(part[collection][stage])[path]
                assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
                if stage == "stem":
                    np.testing.assert_array_equal(found, leaf)
                else:
                    assert isinstance(found, jax.ShapeDtypeStruct)
