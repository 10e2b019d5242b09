import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import MODELS, Mode, build, initialise
from finetune_jax.models.text_encoder import TextEncoder
from finetune_jax.pretrained import map_of
from finetune_jax.pretrained.maps import closest_map, maps_of
from finetune_jax.schemes import resolve

SMALL = TextEncoder(
    width=16, depth=2, heads=2, num_classes=5, inner=24, vocabulary=30, positions=12
)
MEAN = SMALL.clone(pooling="mean")
ROBERTA = SMALL.clone(types=1, padding=1, from_padding=True, epsilon=1e-5)
MASK = np.arange(6)[None] < np.array([[6], [3]])
IDS = np.where(MASK, np.random.default_rng(0).integers(2, 30, (2, 6)), 0).astype(np.int32)


def abstract(model):
    return jax.eval_shape(lambda key: initialise(model, 6, key), jax.random.key(0))


@pytest.fixture(scope="module")
def variables():
    """Variables of the model with a pooler, which include those of the model without."""
    flat = tree.flatten(abstract(SMALL)["params"])
    generator = np.random.default_rng(0)
    values = {
        p: np.float32(p.endswith("scale") + 0.3 * generator.normal(size=x.shape))
        for p, x in flat.items()
    }
    return {"params": tree.unflatten(values), "batch_stats": {}}


def without_pooler(variables):
    params = {s: v for s, v in variables["params"].items() if s != "pooler"}
    return {**variables, "params": params}


def test_top_level_keys_are_the_stages_in_order():
    assert SMALL.stages == ("stem", "block_0", "block_1", "pooler", "head")
    assert MEAN.stages == ("stem", "block_0", "block_1", "head")
    for model in (SMALL, MEAN):
        assert set(abstract(model)["params"]) == {*model.stages}


@pytest.mark.parametrize("model", [SMALL, MEAN], ids=["pooler", "mean"])
def test_running_in_two_parts_equals_running_through(variables, model):
    variables = variables if model is SMALL else without_pooler(variables)
    text = {"input_ids": IDS, "attention_mask": MASK}
    whole = np.asarray(model.apply(variables, text))
    assert np.ptp(whole) > 0
    for stage in ("block_1", *model.stages[3:]):
        middle = model.apply(variables, text, stop=stage)
        again = model.apply(variables, middle, start=stage)
        np.testing.assert_allclose(again, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model", [SMALL, MEAN], ids=["pooler", "mean"])
def test_tokens_outside_the_mask_change_nothing(variables, model):
    variables = variables if model is SMALL else without_pooler(variables)
    run = lambda text: np.asarray(model.apply(variables, text))  # noqa: E731
    padded = run({"input_ids": IDS, "attention_mask": MASK})
    other = run({"input_ids": np.where(MASK, IDS, 7), "attention_mask": MASK.astype(np.int32)})
    np.testing.assert_allclose(other, padded, atol=1e-6)
    np.testing.assert_allclose(run(IDS), padded, atol=1e-6)
    np.testing.assert_allclose(run(IDS[1:, :3]), padded[1:], atol=1e-6)


def test_roberta_counts_positions_of_text_alone(variables):
    stem = {**variables["params"]["stem"]}
    stem["token_type"] = {"embedding": stem["token_type"]["embedding"][:1]}
    ids = np.array([[1, 1, 5, 6], [5, 6, 1, 1]])
    tokens, _ = ROBERTA.apply({"params": {"stem": stem}}, ids, stop="block_0")
    np.testing.assert_allclose(tokens[0, 2:], tokens[1, :2], atol=1e-6)


def test_longer_texts_than_there_are_positions_are_refused(variables):
    with pytest.raises(ValueError, match="at most 12 tokens, found 13"):
        SMALL.apply(variables, np.ones((1, 13), np.int32))
    with pytest.raises(ValueError, match="at most 10 tokens, found 11"):
        jax.eval_shape(lambda key: initialise(ROBERTA, 11, key), jax.random.key(0))


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"pooling: expected one of .*'max'"):
        abstract(SMALL.clone(pooling="max"))
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        abstract(SMALL.clone(heads=3))


def test_logits_are_f32_when_the_rest_is_bfloat16():
    half = SMALL.clone(dtype=jnp.bfloat16)
    variables = abstract(half)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    run = lambda stop: jax.eval_shape(lambda v: half.apply(v, IDS, stop=stop), variables)  # noqa: E731
    assert run("block_1")[0].dtype == jnp.bfloat16
    assert run("head").dtype == run(None).dtype == jnp.float32


def test_recomputation_changes_no_value(variables):
    again = SMALL.clone(remat=True).apply(variables, IDS)
    np.testing.assert_allclose(again, SMALL.apply(variables, IDS), atol=1e-6)


def test_dropout_is_active_in_the_named_stages_only(variables):
    model = SMALL.clone(dropout=0.5)

    def run(stages, seed):
        mode = Mode(dropout=frozenset(stages))
        return np.asarray(model.apply(variables, IDS, mode, rngs={"dropout": jax.random.key(seed)}))

    assert np.array_equal(run((), 0), run((), 1))
    for stage in ("stem", "block_1", "pooler"):
        assert not np.array_equal(run((stage,), 0), run((stage,), 1))


@pytest.mark.slow
def test_published_parameter_counts():
    # transformers' num_parameters() of the bare encoders: with pooler, MiniLM as published too.
    expected = {
        "bert_base_uncased": 109_482_240,
        "bert_large_uncased": 335_141_888,
        "minilm_l6": 22_713_216 - 384 * 385,
        "minilm_l12": 33_360_000 - 384 * 385,
        "roberta_base": 124_645_632,
    }
    for name, count in expected.items():
        size = MODELS[name].image_size
        params = jax.eval_shape(
            lambda key, n=name, s=size: initialise(build(n, 3), s, key), jax.random.key(0)
        )["params"]
        assert tree.size({s: v for s, v in params.items() if s != "head"}) == count, name


@pytest.mark.parametrize(
    ("family", "origin", "model"),
    [
        ("bert", "transformers", SMALL),
        ("bert", "transformers_without_pooler", MEAN),
        ("roberta", "transformers_classifier", ROBERTA),
    ],
)
def test_names_map_to_leaves_and_back(family, origin, model):
    names = map_of(family, origin)
    for leaf in tree.flatten(abstract(model)):
        source = names.source(leaf)
        assert [target.leaf for target in names.targets(source)] == [leaf]
        trunk = source.removeprefix(names.prefix)
        assert [target.leaf for target in names.targets(trunk)] == [leaf]


def test_the_model_decides_whether_a_pooler_is_read():
    names = [map_of("bert", "transformers").source(x) for x in tree.flatten(abstract(SMALL))]
    maps = maps_of("bert")
    assert closest_map(maps, names, tree.flatten(abstract(SMALL)))[0].origin == "transformers"
    found, unknown = closest_map(maps, names, tree.flatten(abstract(MEAN)))
    assert (found.origin, unknown) == ("transformers_without_pooler", ())
    assert "no pooler" in found.ignored("pooler.dense.weight")
    assert "pre-training" in found.ignored("cls.predictions.transform.dense.weight")


TRAIN = {
    "linear_probe": "head/.*",
    "last_k(1)": "(block_1|pooler|head)/.*",
    "norm_only": "head/.*|.*norm\\d*/(scale|bias)",
    "bias_only": "head/.*|.*/bias",
    "llrd(0.75)": ".*",
    "lora(rank=2, on='query|value') + head": "head/.*|.*/(query|value)/lora_[ab]",
    "ia3 + head": "head/.*|.*/(key|value|mlp_out)/ia3_scale",
    "ssf + head": "head/.*|.*/ssf_(scale|shift)",
    "houlsby(size=4) + head": "head/.*|.*norm\\d*/(scale|bias)|.*/(attn|mlp_out)/adapter_.*",
    "pfeiffer(size=4) + head": "head/.*|block_\\d/adapter_.*",
    "adaptformer(size=4) + head": "head/.*|block_\\d/mlp_in/adaptformer_.*",
}


@pytest.mark.parametrize("scheme", TRAIN)
def test_schemes_train_what_they_name_and_start_at_the_base(variables, scheme):
    plan = resolve(scheme, SMALL.stages, variables["params"], variables["batch_stats"])
    params = plan.add_deltas(variables["params"], jax.random.key(2))
    expected = {p for p in tree.flatten(params) if re.fullmatch(TRAIN[scheme], p)}
    assert set(plan.trainable) == expected and expected
    adapted = plan.adapt(SMALL)
    text = {"input_ids": IDS, "attention_mask": MASK}
    np.testing.assert_array_equal(
        adapted.apply({**variables, "params": params}, text), SMALL.apply(variables, text)
    )
    if plan.deltas:
        # With nonzero values, the deltas change the output.
        generator, base = np.random.default_rng(1), tree.flatten(variables["params"])
        moved = {
            p: x if p in base else x + np.float32(0.3 * generator.normal(size=x.shape))
            for p, x in tree.flatten(params).items()
        }
        after = adapted.apply({**variables, "params": tree.unflatten(moved)}, text)
        assert np.abs(after - SMALL.apply(variables, text)).max() > 1e-2


@pytest.mark.parametrize("scheme", ["vpt(tokens=2)", "vpt(tokens=2, deep=True)"])
def test_prompts_are_refused(variables, scheme):
    with pytest.raises(UserError, match="expected a model of images, found a model of texts"):
        resolve(scheme, SMALL.stages, variables["params"], variables["batch_stats"])
