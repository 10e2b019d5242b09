"""MobileNets, SqueezeNet and MLPerf Tiny's ResNet-8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conv_checks import abstract, check_bfloat16, check_names, check_parts, draw, parameters

from finetune_jax.models import Mode
from finetune_jax.models.mobilenet_v1 import MobileNetV1
from finetune_jax.models.mobilenet_v2 import MobileNetV2, channels
from finetune_jax.models.resnet8_mlperf import ResNet8
from finetune_jax.models.squeezenet import SqueezeNet
from finetune_jax.schemes import resolve

V2 = MobileNetV2(5, 0.25, layout=((1, 16, 1, 1), (6, 16, 2, 2)))
V1 = MobileNetV1(5, 0.25, layout=((64, 1), (128, 2)))
FULL_V2, FULL_V1 = MobileNetV2(5, 0.25), MobileNetV1(5, 0.25)
RESNET = ResNet8(5, (8, 16))
SQUEEZE = SqueezeNet(5, layout=((8, 8, False), (8, 8, True)))
MODELS = {"v2": V2, "v1": V1, "resnet8": RESNET, "squeezenet": SQUEEZE}


@pytest.mark.parametrize("model", [V2, V1, RESNET], ids=["v2", "v1", "resnet8"])
def test_parts_make_the_whole(model):
    check_parts(model)


def test_squeezenet_averages_after_its_head():
    variables, images = draw(SQUEEZE, 64), np.random.default_rng(1).normal(size=(2, 64, 64, 3))
    assert set(variables["params"]) == set(SQUEEZE.stages)
    run = jax.jit(SQUEEZE.apply, static_argnames=("start", "stop"))
    whole, features = run(variables, images), run(variables, images, stop="head")
    assert features.shape == (2, 7, 7, 16)
    head = variables["params"]["head"]
    places = np.maximum(features @ head["kernel"] + head["bias"], 0)
    np.testing.assert_allclose(places.mean((1, 2)), whole, rtol=1e-5)
    middle = run(variables, images, stop="block_1")
    np.testing.assert_allclose(run(variables, middle, start="block_1"), whole, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_logits_are_f32_when_the_rest_is_bfloat16(model):
    check_bfloat16(model, 64)


@pytest.mark.parametrize(
    ("family", "origin", "model"),
    [
        ("mobilenet_v2", "torchvision", FULL_V2),
        ("mobilenet_v2", "timm", FULL_V2),
        ("mobilenet_v2", "transformers", FULL_V2),
        ("mobilenet_v2", "keras", FULL_V2),
        ("mobilenet_v1", "keras", FULL_V1),
        ("resnet8_mlperf", "keras", ResNet8(5)),
        ("squeezenet", "torchvision", SqueezeNet(5)),
        ("squeezenet", "webnn", SqueezeNet(5)),
    ],
)
def test_names_map_to_leaves_and_back(family, origin, model):
    check_names(family, origin, model, 64)


def test_published_parameter_counts():
    # Counts of torchvision, Keras (trainable parameters, twice) and torchvision.
    assert parameters("mobilenetv2_100") == 3_504_872
    assert parameters("mobilenetv1_025") == 470_072
    assert parameters("resnet8_mlperf") == 78_186
    assert parameters("squeezenet1_0") == 1_248_424


def test_widths_are_rounded_as_published():
    assert [channels(c * 0.35) for c in (32, 16, 24, 64, 160, 320)] == [16, 8, 8, 24, 56, 112]


def test_tensorflow_pads_the_far_side():
    image = jnp.zeros((1, 8, 8, 3)).at[0, 0, 0].set(1)
    variables = jax.tree.map(
        lambda x: jnp.ones(x.shape), abstract(V2.clone(layout=((1, 16, 1, 1),)), 8)
    )
    run = lambda same: V2.clone(layout=((1, 16, 1, 1),), same=same).apply(  # noqa: E731
        variables, image, stop="block_0"
    )
    # PyTorch's first window at stride 2 begins before the border, TensorFlow's at the corner.
    assert np.array_equal(run(True)[0, :, :, 0] > run(True)[0, -1, -1, 0], np.eye(4) * [1, 0, 0, 0])
    assert run(True).shape == run(False).shape == (1, 4, 4, 8)


def test_dropout_is_active_in_the_top_only():
    model = V2.clone(dropout=0.5)
    variables = jax.tree.map(lambda x: jnp.ones(x.shape), abstract(model))
    entering = jnp.ones((1, 2, 2, 8))

    def run(stages, seed):
        rngs = {"dropout": jax.random.key(seed)}
        mode = Mode(dropout=frozenset(stages))
        return np.asarray(
            model.apply(variables, entering, mode, start="top", stop="head", rngs=rngs)
        )

    assert np.array_equal(run(("block_0",), 0), run((), 1))
    assert not np.array_equal(run(("top",), 0), run(("top",), 1))


@pytest.mark.parametrize("model", [V1, RESNET, SQUEEZE], ids=["v1", "resnet8", "squeezenet"])
def test_dropout_is_refused(model):
    with pytest.raises(ValueError, match="no dropout"):
        abstract(model.clone(dropout=0.1), 64)


@pytest.mark.parametrize("scheme", ["last_k(1)", "norm_only", "lora(rank=2) + head"])
def test_schemes_of_convolutional_networks_resolve(scheme):
    variables = abstract(V2)
    plan = resolve(scheme, V2.stages, variables["params"], variables["batch_stats"])
    assert any(path.startswith("head/") for path in plan.trainable)
    assert not any("depthwise/" in path and "lora" in path for path in plan.trainable)


def test_gluons_mobilenet_v2_has_the_strides_of_its_weights():
    from finetune_jax.models import build, initial_variables

    model = build("mobilenetv2_100_gluon", 1, image_size=224)
    abstract = initial_variables(model, 224, stages=())
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def side(stop):
        return jax.eval_shape(lambda v, x: model.apply(v, x, stop=stop), abstract, images).shape[1]

    # The input of block_N is the output of the block before.
    sides = {number: side(f"block_{number + 1}") for number in (0, 1, 3, 6, 9, 10, 13)}
    assert sides == {0: 112, 1: 56, 3: 28, 6: 28, 9: 28, 10: 14, 13: 7}
