import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.models import MODELS, Mode, build, initialise
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import map_of
from finetune_jax.pretrained.maps import closest_map, maps_of
from finetune_jax.schemes import resolve

SMALL = ViT(width=16, depth=2, heads=2, patch=8, num_classes=5)
VARIANTS = {
    "token": SMALL,
    "gap": SMALL.clone(pooling="gap", norm_pooled=True),
    "registers": SMALL.clone(
        pooling="token_gap", registers=3, positions="class", layer_scale=0.1, activation="swiglu"
    ),
    "clip": SMALL.clone(pre_norm=True, patch_bias=False, activation="gelu_quick", epsilon=1e-5),
    "map": SMALL.clone(pooling="map", activation="gelu_tanh", inner=24),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(2, 4, 16)).astype(np.float32)
# The generator rbg compiles quickly.
KEYS = [jax.random.key(seed, impl="rbg") for seed in range(2)]


@functools.cache
def abstract(model, side=16):
    return jax.eval_shape(lambda key: initialise(model, side, key), jax.random.key(0))


def drawn(model):
    generator = np.random.default_rng(0)
    flat = {
        p: np.float32(p.endswith("scale") + 0.3 * generator.normal(size=x.shape))
        for p, x in tree.flatten(abstract(model)["params"]).items()
    }
    return {"params": tree.unflatten(flat), "batch_stats": {}}


@pytest.mark.parametrize("name", VARIANTS)
def test_running_in_two_parts_equals_running_through(name):
    model, variables = VARIANTS[name], drawn(VARIANTS[name])
    assert set(variables["params"]) == {*model.stages}
    assert model.stages[:4] == ("stem", "block_0", "block_1", "norm")

    @jax.jit
    def run(variables):
        middle = model.apply(variables, IMAGES, stop="block_1")
        again = model.apply(variables, middle, start="block_1")
        return model.apply(variables, IMAGES), again

    whole, again = run(variables)
    assert np.ptp(whole) > 0
    np.testing.assert_allclose(again, whole, atol=1e-5, rtol=1e-5)


def test_a_half_precision_model_has_logits_and_parameters_in_single_precision():
    for name in ("registers", "map"):
        model = VARIANTS[name].clone(dtype=jnp.bfloat16, remat=True)
        shapes = jax.eval_shape(lambda v, m=model: m.apply(v, IMAGES), abstract(model))
        assert shapes.dtype == jnp.float32
        assert {x.dtype for x in jax.tree.leaves(abstract(model))} == {np.dtype(np.float32)}


def test_dropout_of_each_stage_is_active_where_it_is_asked_for():
    model = SMALL.clone(pooling="map", dropout=0.5)
    variables = drawn(model)

    @jax.jit
    def run(seed):
        return [
            model.apply(
                variables, TOKENS, Mode(dropout=stages), rngs={"dropout": seed},
                start="map_pool", stop="head",
            )
            for stages in (frozenset({"norm"}), frozenset({"map_pool"}))
        ]  # fmt: skip

    (plain, pooled), (plain_again, pooled_again) = run(KEYS[0]), run(KEYS[1])
    np.testing.assert_array_equal(plain, plain_again)
    assert not np.allclose(pooled, pooled_again)


# timm's counts, without a head if the published model has no head. Here, CLIP's projection has a
# bias.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_ti16", 5_717_416), ("vit_b32", 88_224_232), 
        ("deit_s16", 22_050_664), ("dinov2_b14", 86_579_712), ("dinov2_g14", 1_136_479_232),
        ("siglip_b16", 92_884_224), ("clip_vit_b32", 87_849_216 + 512),
    ],
)  # fmt: skip
def test_published_sizes(name, count):
    entry = MODELS[name]
    model = build(name, entry.classes or 1, image_size=entry.image_size)
    params = abstract(model, entry.image_size)["params"]
    kept = {s: v for s, v in params.items() if s != "head" or entry.classes}
    assert tree.size(kept) == count


@pytest.mark.parametrize(
    ("origin", "variant", "lacks"),
    [
        ("timm", "token", ()), ("timm", "map", ()), ("timm", "clip", ()),
        ("timm_fc_norm", "gap", ()),
        ("facebook_registers_giant", "registers", ("head",)),
        ("transformers", "token", ()), ("transformers_deit", "token", ()),
        ("transformers_dinov2_with_registers_giant", "registers", ()),
        ("transformers_clip", "clip", ("head/bias",)), ("openai", "clip", ("head/bias",)),
        ("transformers_siglip", "map", ("head",)),
        ("vit_jax", "token", ()), ("big_vision", "map", ()),
        ("big_vision_two_towers", "map", ()),
    ],
)  # fmt: skip
def test_names_read_both_ways(origin, variant, lacks):
    names = map_of("vit", origin)
    leaves = tree.flatten(abstract(VARIANTS[variant]))
    for leaf in leaves:
        source = names.source(leaf)
        if leaf.removeprefix("params/").startswith(lacks or "none"):
            assert source is None
        else:
            assert source is not None, leaf
            assert leaf in {t.leaf for t in names.targets(source)}


def test_our_own_files_are_distinguished_from_those_of_big_vision():
    leaves = tree.flatten(abstract(VARIANTS["map"]))
    assert closest_map(maps_of("vit"), leaves, leaves)[0].origin == "native"
    theirs = [map_of("vit", "big_vision").source(leaf) for leaf in leaves]
    assert closest_map(maps_of("vit"), theirs, leaves)[0].origin == "big_vision"


def test_tokens_without_a_position_differ_from_tokens_with_one_of_zero_in_nothing():
    model = SMALL.clone(depth=1, registers=2)
    variables = drawn(model.clone(positions="patches"))
    stem = variables["params"]["stem"]

    @jax.jit
    def run(position):
        found = []
        for positions, count in (("patches", 0), ("class", 1), ("all", 3)):
            placed = jnp.concatenate([jnp.zeros((1, count, 16)), position], axis=1)
            params = {**variables["params"], "stem": {**stem, "position_embedding": placed}}
            other = model.clone(positions=positions)
            found.append(other.apply({"params": params}, IMAGES, stop="block_0"))
        return found

    patches, *others = run(stem["position_embedding"])
    for other in others:
        np.testing.assert_array_equal(other, patches)


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_come_after_class_token_and_registers(deep):
    model, variables = VARIANTS["registers"], drawn(VARIANTS["registers"])
    plan = resolve(f"vpt(tokens=2, deep={deep})", model.stages, variables["params"], {})
    assert {d.offset for d in plan.deltas} == {4}
    params = plan.add_deltas(variables["params"], jax.random.key(2))

    def run(stop):
        return jax.eval_shape(
            lambda p: plan.adapt(model).apply({"params": p}, IMAGES, stop=stop), params
        )

    assert run("norm").shape == (2, 8, 16)
    assert run("block_1").shape == (2, 8 if deep else 10, 16)


@pytest.mark.parametrize(
    "scheme",
    ["last_k(1)", "norm", "bias_only", "lora(rank=2) + head", "ia3", "ssf", "houlsby(size=2)",
     "pfeiffer(size=2)", "adaptformer(size=2)", "llrd(0.5) + full"],
)  # fmt: skip
def test_every_kind_of_scheme_fits_every_variant(scheme):
    for model in VARIANTS.values():
        params = abstract(model)["params"]
        plan = resolve(scheme, model.stages, params, {})
        assert plan.trainable


def test_attention_pooling_is_reached_by_name():
    model = VARIANTS["map"]
    plan = resolve("lora(rank=2)", model.stages, abstract(model)["params"], {})
    assert {"map_pool/attn/query", "map_pool/attn/value"} <= {d.module for d in plan.deltas}
    assert (
        "map_pool/norm/scale"
        in resolve("norm", model.stages, abstract(model)["params"], {}).trainable
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "tokens"}, "pooling: expected one of .* Did you mean 'token'"),
        ({"positions": "none"}, "positions: expected one of"),
        ({"activation": "tanh"}, "activation: expected one of"),
        ({"heads": 3}, "3 heads do not divide the width 16"),
        ({"class_token": False}, "reads the class token"),
        ({"pooling": "map", "norm_pooled": True}, "norm_pooled: expected False"),
    ],
)
def test_fields_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        abstract(SMALL.clone(**options))


def test_the_head_of_dinov2_reads_what_is_asked_for():
    widths = {
        head: abstract(build("dinov2_s14", 5, head=head), 28)["params"]["head"]["kernel"].shape[0]
        for head in ("token", "token_gap")
    }
    assert widths == {"token": 384, "token_gap": 768}


def test_registry_names_are_distinct_models():
    entries = {n: e for n, e in MODELS.items() if e.family == "vit"}
    built = {n: build(n, 5, image_size=e.image_size) for n, e in entries.items()}
    for (one, a), (two, b) in itertools.combinations(built.items(), 2):
        assert a != b or entries[one].inputs != entries[two].inputs, (one, two)
    assert all(e.inputs.size % e.patch == 0 for e in entries.values())
