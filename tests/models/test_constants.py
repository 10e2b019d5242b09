"""Constants that published weights depend on: strides, paddings, epsilons, activations, pooling.

The random weights of a parity test hide some of these constants. Here each constant is compared
with the number in the reference implementation. All constants are read from traced programs,
without compiling a model.
"""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conv_checks import abstract

from finetune_jax.models import StagedModel, build
from finetune_jax.models.activations import ACTIVATIONS
from finetune_jax.models.bit import BiT
from finetune_jax.models.convnext import ConvNeXt
from finetune_jax.models.mobilenet_v1 import MobileNetV1
from finetune_jax.models.mobilenet_v2 import MobileNetV2
from finetune_jax.models.resnet import ResNet
from finetune_jax.models.resnet8_mlperf import ResNet8
from finetune_jax.models.resnet_cifar import ResNetCifar
from finetune_jax.models.squeezenet import SqueezeNet
from finetune_jax.models.vgg import VGG
from finetune_jax.models.vit import ViT
from finetune_jax.models.vit_layers import pool_tokens


def equations(jaxpr: jax.core.Jaxpr) -> Iterator[jax.core.JaxprEqn]:
    """All equations of a program in order, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def windows(model: StagedModel, size: int = 32) -> list[str]:
    """Convolutions and poolings in order: window, /stride, paddings before and after, groups."""
    variables = abstract(model, size)
    program = jax.make_jaxpr(model.apply)(variables, jnp.zeros((1, size, size, 3)))
    found = []
    for equation in equations(program.jaxpr):
        params = equation.params
        if equation.primitive.name == "conv_general_dilated":
            sides = [equation.invars[1].aval.shape[i] for i in params["dimension_numbers"].rhs_spec]
            kind, window, padding = "conv", sides[2:], params["padding"]
            groups = params["feature_group_count"]
        elif equation.primitive.name == "reduce_window_max":
            window, padding, groups = params["window_dimensions"][1:3], params["padding"][1:3], 1
            kind = "max"
        else:
            continue
        stride = params["window_strides"][1 if kind == "max" else 0]
        assert len(set(window)) == len(set(padding)) == 1
        ends = "" if padding[0] == (0, 0) else f" {padding[0][0]}+{padding[0][1]}"
        found.append(f"{kind} {window[0]}/{stride}{ends}{f' x{groups}' * (groups > 1)}")
    return found


V2_BLOCK = ((1, 8, 1, 1), (6, 8, 1, 2))
WINDOWS = {
    # torchvision.models.resnet: the 3x3 convolution has the stride.
    "resnet": (ResNet((1, 1), True, 5, (16, 32), 8), [
        "conv 7/2 3+3", "max 3/2 1+1",
        "conv 1/1", "conv 3/1 1+1", "conv 1/1", "conv 1/1",
        "conv 1/1", "conv 3/2 1+1", "conv 1/1", "conv 1/2",
    ]),
    "resnet basic": (ResNet((1, 1), False, 5, (8, 16), 8), [
        "conv 7/2 3+3", "max 3/2 1+1",
        "conv 3/1 1+1", "conv 3/1 1+1", "conv 3/2 1+1", "conv 3/1 1+1", "conv 1/2",
    ]),
    # keras.applications.resnet: the first 1x1 convolution has the stride.
    "resnet keras": (ResNet((1, 1), True, 5, (16, 32), 8, stride_first=True), [
        "conv 7/2 3+3", "max 3/2 1+1",
        "conv 1/1", "conv 3/1 1+1", "conv 1/1", "conv 1/1",
        "conv 1/2", "conv 3/1 1+1", "conv 1/1", "conv 1/2",
    ]),
    # akamaster/pytorch_resnet_cifar10, option A.
    "resnet_cifar": (ResNetCifar(8, 5), [
        "conv 3/1 1+1", "conv 3/1 1+1", "conv 3/1 1+1", "conv 3/2 1+1", "conv 3/1 1+1",
        "conv 3/2 1+1", "conv 3/1 1+1",
    ]),
    # facebookresearch/ConvNeXt.
    "convnext": (ConvNeXt((1, 1), (8, 12), 5), [
        "conv 4/4", "conv 7/1 3+3 x8", "conv 2/2", "conv 7/1 3+3 x12",
    ]),
    # google-research/big_transfer: the pooling's border of zeros is an operation of its own.
    "bit": (BiT((1, 1), 5, (16, 32), 8, groups=2), [
        "conv 7/2 3+3", "max 3/2",
        "conv 1/1", "conv 1/1", "conv 3/1 1+1", "conv 1/1",
        "conv 1/2", "conv 1/1", "conv 3/2 1+1", "conv 1/1",
    ]),
    "vgg": (VGG((1, 2), 5, widths=(4, 8), hidden=(4, 4), pool_side=2), [
        "conv 3/1 1+1", "max 2/2", "conv 3/1 1+1", "conv 3/1 1+1", "max 2/2",
    ]),
    # keras.applications.mobilenet: at stride 2 only the bottom and the right are padded.
    "mobilenet_v1": (MobileNetV1(5, 0.25, ((8, 1), (8, 2))), [
        "conv 3/2 0+1", "conv 3/1 1+1 x8", "conv 1/1", "conv 3/2 0+1 x2", "conv 1/1",
    ]),
    # torchvision.models.mobilenetv2; its first block does not expand.
    "mobilenet_v2": (MobileNetV2(5, layout=V2_BLOCK), [
        "conv 3/2 1+1", "conv 3/1 1+1 x32", "conv 1/1",
        "conv 1/1", "conv 3/2 1+1 x48", "conv 1/1", "conv 1/1",
    ]),
    "mobilenet_v2 tensorflow": (MobileNetV2(5, layout=V2_BLOCK, same=True), [
        "conv 3/2 0+1", "conv 3/1 1+1 x32", "conv 1/1",
        "conv 1/1", "conv 3/2 0+1 x48", "conv 1/1", "conv 1/1",
    ]),
    # torchvision.models.squeezenet: poolings have ceil_mode=True.
    "squeezenet": (SqueezeNet(5, ((4, 4, False), (4, 4, True))), [
        "conv 7/2", "max 3/2", "conv 1/1", "conv 1/1", "conv 3/1 1+1",
        "max 3/2 0+1", "conv 1/1", "conv 1/1", "conv 3/1 1+1",
    ]),
    "squeezenet tensorflow": (SqueezeNet(5, ((4, 4, True),), tensorflow=True), [
        "conv 7/2 2+3", "max 3/2", "max 3/2", "conv 1/1", "conv 1/1", "conv 3/1 1+1",
    ]),
    "resnet8_mlperf": (ResNet8(5, (4, 8)), [
        "conv 3/1 1+1", "conv 3/1 1+1", "conv 3/1 1+1",
        "conv 3/2 0+1", "conv 3/1 1+1", "conv 1/2",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_strides_and_paddings(name):
    model, expected = WINDOWS[name]
    assert windows(model) == expected


def small(name: str) -> StagedModel:
    """A model of the registry with one block per layer."""
    model = build(name, 2)
    if hasattr(model, "depths"):
        return model.clone(depths=(1,) * len(model.depths))
    if "block_0" in model.stages and hasattr(model, "depth"):
        return model.clone(depth=1)
    return model


# Epsilon of all norms, as the reference implementation has it, and the primitives that tell the
# activations apart: erf (exact GELU), tanh (its approximation, and BERT's pooler), logistic
# (CLIP's approximation, SwiGLU).
REFERENCES = {
    "vit_ti16": (1e-6, {"erf"}),  # timm.models.vision_transformer
    "augreg_ti16": (1e-6, {"tanh"}),  # flax.linen.gelu and flax.linen.LayerNorm
    "deit_ti16": (1e-6, {"erf"}),
    "deit_ti16_distilled": (1e-6, {"erf"}),
    "dinov2_s14": (1e-6, {"erf"}),  # facebookresearch/dinov2
    "dinov2_s14_reg": (1e-6, {"erf"}),
    "dinov2_g14": (1e-6, {"logistic"}),
    "clip_vit_b32": (1e-5, {"logistic"}),  # torch.nn.LayerNorm
    "clip_vit_l14": (1e-5, {"logistic"}),
    "siglip_b16": (1e-6, {"tanh"}),  # big_vision
    "siglip_so400m14": (1e-6, {"tanh"}),
    "mixer_b16": (1e-6, {"erf"}),  # timm.models.mlp_mixer
    "convnext_tiny": (1e-6, {"erf"}),  # facebookresearch/ConvNeXt
    "convnextv2_atto": (1e-6, {"erf"}),
    "bert_base_uncased": (1e-12, {"erf", "tanh"}),  # config.json: layer_norm_eps
    "minilm_l6": (1e-12, {"erf"}),
    "roberta_base": (1e-5, {"erf", "tanh"}),
    "bit_r50x1": (1e-5, set()),  # google-research/big_transfer
    "resnet50": (1e-5, set()),  # torch.nn.BatchNorm2d
    "resnet50_keras": (1.001e-5, set()),  # keras.applications.resnet
    "resnet20_cifar": (1e-5, set()),
    "vgg16_bn": (1e-5, set()),
    "mobilenetv1_100": (1e-3, set()),  # keras.layers.BatchNormalization
    "mobilenetv2_100": (1e-5, set()),
    "mobilenetv2_100_keras": (1e-3, set()),
    "mobilenetv2_100_tf": (1e-3, set()),
    "resnet8_mlperf": (1e-3, set()),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_epsilons_and_activations(name):
    model, (epsilon, activations) = small(name), REFERENCES[name]
    size = 32 if not hasattr(model, "patch") else 2 * model.patch
    variables = abstract(model, size)
    epsilons = []

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, (nn.LayerNorm, nn.BatchNorm, nn.GroupNorm)):
            epsilons.append(context.module.epsilon)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        program = jax.make_jaxpr(model.apply)(variables, model.example(size))
    assert set(epsilons) == {epsilon}
    used = {equation.primitive.name for equation in equations(program.jaxpr)}
    used = {"erf" if name == "erfc" else name for name in used}
    assert used & {"erf", "tanh", "logistic"} == activations


@pytest.mark.parametrize(
    ("name", "value"), [("gelu", 0.8413447), ("gelu_tanh", 0.8411920), ("gelu_quick", 0.8457957)]
)
def test_the_forms_of_gelu_at_one(name, value):
    assert ACTIVATIONS[name](jnp.float32(1)) == pytest.approx(value, abs=2e-6)


GAP = ViT(16, 1, 2, 8, 5, pooling="gap", class_token=True, registers=3)
TOKENS = np.random.default_rng(0).normal(size=(2, 1 + 3 + 4, 16)).astype(np.float32)


def normed(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("norm_pooled", [False, True])
def test_the_mean_leaves_out_class_token_and_registers(norm_pooled):
    model = GAP.clone(norm_pooled=norm_pooled)
    shapes = abstract(model, 16)["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    params["norm"]["scale"] += 1
    found = model.apply({"params": params}, TOKENS, start="norm", stop="head")
    patches = TOKENS[:, 4:]
    expected = normed(patches.mean(1)) if norm_pooled else normed(patches).mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_poolings_of_class_token_registers_and_patches():
    mean = TOKENS[:, 4:].mean(1)
    np.testing.assert_allclose(pool_tokens(TOKENS, "gap", 4), mean, atol=1e-6)
    np.testing.assert_array_equal(pool_tokens(jnp.asarray(TOKENS), "token", 4), TOKENS[:, 0])
    both = pool_tokens(TOKENS, "token_gap", 4)
    np.testing.assert_allclose(both, np.concatenate([TOKENS[:, 0], mean], 1), atol=1e-6)


def test_the_grid_leaves_out_class_token_and_registers():
    np.testing.assert_array_equal(GAP.grid(TOKENS), TOKENS[:, 4:].reshape(2, 2, 2, 16))
