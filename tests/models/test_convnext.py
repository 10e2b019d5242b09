import jax
import numpy as np
import pytest
from conv_checks import (
    abstract,
    check_bfloat16,
    check_names,
    check_parts,
    check_schemes,
    draw,
    parameters,
)

from finetune_jax import tree
from finetune_jax.models.convnext import ConvNeXt
from finetune_jax.schemes.masks import norm_only
from finetune_jax.schemes.model_spec import ModelSpec

V1 = ConvNeXt((1, 1), (8, 12), 5)
V2 = V1.clone(version=2)


@pytest.mark.parametrize("model", [V1, V2], ids=["v1", "v2"])
def test_parts_make_the_whole(model):
    check_parts(model)
    check_bfloat16(model)


@pytest.mark.parametrize("origin", ["timm", "facebook", "transformers"])
@pytest.mark.parametrize(("family", "model"), [("convnext", V1), ("convnextv2_1x1", V2)])
def test_names_map_to_leaves_and_back(family, model, origin):
    check_names(family, origin, model)


def test_published_parameter_counts():
    # timm's counts; the tables of the papers have rounded counts.
    assert parameters("convnext_tiny") == 28_589_128
    assert parameters("convnextv2_atto") == 3_708_400


def test_the_mean_comes_before_the_last_norm():
    variables = draw(V1)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    before = np.asarray(jax.jit(lambda v, x: V1.apply(v, x, stop="norm"))(variables, x))
    assert before.shape == (2, 4, 4, 12)
    last = jax.jit(lambda v, x: V1.apply(v, x, start="norm", stop="head"))
    features = np.asarray(last(variables, before))
    mean = before.mean((1, 2))
    centred = mean - mean.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    norm = variables["params"]["norm"]
    np.testing.assert_allclose(features, expected * norm["scale"] + norm["bias"], atol=1e-5)


def test_layer_scale_and_response_are_no_norms():
    for model in (V1, V2):
        spec = ModelSpec(model.stages, tree.flatten(abstract(model)["params"]))
        chosen = set(norm_only(spec).leaves)
        assert {"stem/norm/scale", "stage1_block0/downsample/norm/bias", "norm/scale"} <= chosen
        assert not [leaf for leaf in chosen if "layer_scale" in leaf or "response" in leaf]


def test_schemes():
    check_schemes(
        V2,
        {
            "last_k(1)": {"stage1_block0", "norm", "head"},
            "norm_only": set(V2.stages),
            "lora(rank=2)": {"stem", "stage1_block0"},
            "lora(rank=2, on='mlp_.*')": {"stage0_block0", "stage1_block0"},
            "ssf + head": set(V2.stages),
        },
    )
