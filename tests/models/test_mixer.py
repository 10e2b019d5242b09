import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import MODELS, Mode, build, initialise
from finetune_jax.models.mixer import Mixer
from finetune_jax.pretrained import map_of
from finetune_jax.schemes import resolve

SMALL = Mixer(width=16, depth=2, patch=8, num_classes=5)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(2, 4, 16)).astype(np.float32)
# The generator rbg compiles quickly.
KEYS = [jax.random.key(seed, impl="rbg") for seed in range(2)]


def abstract(model, side=16):
    return jax.eval_shape(lambda key: initialise(model, side, key), jax.random.key(0))


@pytest.fixture(scope="module")
def variables():
    generator = np.random.default_rng(0)
    flat = {
        p: np.float32(p.endswith("scale") + 0.3 * generator.normal(size=x.shape))
        for p, x in tree.flatten(abstract(SMALL)["params"]).items()
    }
    return {"params": tree.unflatten(flat), "batch_stats": {}}


def test_running_in_two_parts_equals_running_through(variables):
    assert SMALL.stages == ("stem", "block_0", "block_1", "norm", "head")
    assert set(variables["params"]) == {*SMALL.stages}

    @jax.jit
    def run(variables):
        middle = SMALL.apply(variables, IMAGES, stop="block_1")
        again = SMALL.apply(variables, middle, start="block_1")
        return SMALL.apply(variables, IMAGES), again

    whole, again = run(variables)
    assert np.ptp(whole) > 0
    np.testing.assert_allclose(again, whole, atol=1e-5, rtol=1e-5)


def test_dropout_is_active_where_it_is_asked_for(variables):
    model = SMALL.clone(dropout=0.5)

    @jax.jit
    def run(seed):
        return [
            model.apply(
                variables, TOKENS, Mode(dropout=stages), rngs={"dropout": seed},
                start="block_1", stop="norm",
            )
            for stages in (frozenset({"block_0"}), frozenset({"block_1"}))
        ]  # fmt: skip

    (plain, dropped), (plain_again, dropped_again) = run(KEYS[0]), run(KEYS[1])
    np.testing.assert_array_equal(plain, plain_again)
    assert not np.allclose(dropped, dropped_again)


def test_a_half_precision_model_has_logits_in_single_precision():
    model = SMALL.clone(dtype=jnp.bfloat16, remat=True)
    shapes = jax.eval_shape(lambda v: model.apply(v, IMAGES), abstract(model))
    assert shapes.dtype == jnp.float32


# timm's counts; the paper's table 1 rounds to 19, 60 and 208 million.
@pytest.mark.parametrize(
    ("name", "count"),
    [("mixer_s16", 18_528_264), ("mixer_b16", 59_880_472)],
)
def test_published_sizes(name, count):
    model = build(name, 1000, image_size=224)
    assert tree.size(abstract(model, 224)["params"]) == count


@pytest.mark.parametrize("origin", ["timm", "vit_jax"])
def test_names_read_both_ways(origin):
    names = map_of("mixer", origin)
    for leaf in tree.flatten(abstract(SMALL)):
        source = names.source(leaf)
        assert source is not None, leaf
        assert [t.leaf for t in names.targets(source)] == [leaf]


def test_schemes():
    params = abstract(SMALL)["params"]
    for scheme in ("last_k(1)", "norm", "lora(rank=2, on='mlp_.*')", "ssf", "llrd(0.5) + full"):
        assert resolve(scheme, SMALL.stages, params, {}).trainable
    with pytest.raises(UserError, match="needs transformer blocks"):
        resolve("vpt", SMALL.stages, params, {})


def test_the_registry_has_every_published_size():
    assert {n for n, e in MODELS.items() if e.family == "mixer"} == {
        f"mixer_{size}{patch}" for size in "sbl" for patch in (16, 32)
    }
