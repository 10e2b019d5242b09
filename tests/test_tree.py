import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from finetune_jax import tree
from finetune_jax.training.state import State

KEYS = st.text("abc_0", min_size=1, max_size=3)
TREES = st.recursive(
    st.integers(0, 9).map(np.asarray),
    lambda children: st.dictionaries(KEYS, children, min_size=1, max_size=4),
    max_leaves=12,
).filter(lambda t: isinstance(t, dict))


@given(TREES)
def test_unflatten_undoes_flatten(nested):
    assert tree.unflatten(tree.flatten(nested)) == nested


@given(TREES, st.data())
def test_merge_undoes_split_and_halves_share_nothing(nested, data):
    paths = list(tree.flatten(nested))
    chosen = data.draw(st.sets(st.sampled_from(paths)))
    inside, outside = tree.split(nested, chosen)
    assert set(tree.flatten(inside)) == chosen
    assert tree.flatten(tree.merge(inside, outside)) == tree.flatten(nested)


def test_split_names_a_missing_leaf():
    with pytest.raises(KeyError, match="a/c"):
        tree.split({"a": {"b": 1}}, ["a/c"])


def test_merge_refuses_a_leaf_in_both_halves():
    with pytest.raises(ValueError, match="a/b"):
        tree.merge({"a": {"b": 1}}, {"a": {"b": 2}})


@pytest.mark.parametrize(
    "changed",
    [np.zeros((2, 2), np.float64), np.zeros((4,), np.float32), np.float32([[0, 0], [0, -0.0]])],
    ids=["dtype", "shape", "one bit"],
)
def test_fingerprint_sees_dtype_shape_and_every_bit(changed):
    base = {"a": np.zeros((2, 2), np.float32)}
    assert tree.fingerprint(base) == tree.fingerprint({"a": np.zeros((2, 2), np.float32)})
    assert tree.fingerprint(base) != tree.fingerprint({"a": changed})


def test_the_first_leaf_that_is_not_finite_is_named():
    bad = np.float32([1, np.inf])
    state = State(
        step=jnp.zeros((), jnp.int32),
        params={"a": {"b": jnp.ones(3)}, "c": jnp.bfloat16([1, 2])},
        stats={},
        opt_state=optax.adam(1.0).init({"w": jnp.ones(2)}),
        ema={},
        key=jax.random.key(0),
        hyper={"rate": np.float32(1)},
    )
    assert tree.first_nonfinite(state) is None
    assert tree.first_nonfinite({"x": np.arange(3), "y": {"z": bad}}) == "y/z"
    moments = optax.adam(1.0).init({"w": jnp.asarray(bad)})
    moments = (moments[0]._replace(mu={"w": jnp.asarray(bad)}), *moments[1:])
    assert tree.first_nonfinite(dataclasses.replace(state, opt_state=moments)) == "opt_state/0/mu/w"
    low = {**state.params, "c": jnp.bfloat16([np.nan, 2])}
    assert tree.first_nonfinite(dataclasses.replace(state, params=low)) == "params/c"
    # The program that an accelerator runs.
    assert bool(tree._reduce_finite(jnp.ones(2))) and not bool(
        tree._reduce_finite(jnp.asarray(bad))
    )
