"""Which leaf gets which group, rate and decay, on a hand-made model of shapes alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.schemes import (
    FROZEN,
    Group,
    ModelSpec,
    difference,
    print_phases,
    resolve,
    resolve_phases,
)
from finetune_jax.schemes.arguments import non_negative_int, positive, positive_int
from finetune_jax.schemes.model_spec import Measurement

BLOCKS = ("block_0", "block_1", "block_2", "block_3")
# With a stage between two blocks and a final norm.
STAGES = ("stem", "block_0", "block_1", "down", "block_2", "block_3", "norm", "head")


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def stage_of(name):
    if name == "norm":
        return {"scale": shape(4), "bias": shape(4)}
    module = {"kernel": shape(4, 4), "bias": shape(4)}
    if name in BLOCKS:
        return {"norm1": {"scale": shape(4), "bias": shape(4)}, "conv1": module}
    return module if name == "head" else {"conv": module}


PARAMS = {name: stage_of(name) for name in STAGES}
STATISTICS = {
    "block_1": {"norm1": {"mean": shape(4), "var": shape(4)}},
    "block_3": {"norm1": {"mean": shape(4), "var": shape(4)}},
}


def plan_of(scheme, statistics=(), **options):
    return resolve(scheme, STAGES, PARAMS, dict(statistics), **options)


def trained_stages(scheme):
    return [s for s in STAGES if s in {p.split("/")[0] for p in plan_of(scheme).trainable}]


def rates_of(scheme):
    """Rate by stage; one rate for all leaves of a stage."""
    rates = {}
    for leaf in plan_of(scheme).leaves:
        assert rates.setdefault(leaf.stage, leaf.lr) == leaf.lr
    return [rates[stage] for stage in STAGES]


def leaves_of(plan, attribute):
    return {leaf.path: getattr(leaf, attribute) for leaf in plan.leaves}


@pytest.mark.parametrize(
    ("scheme", "stages"),
    [
        ("last_k(1)", STAGES[5:]),
        ("last_k(2)", STAGES[4:]),
        ("last_k(3)", STAGES[2:]),
        ("last_k(4)", STAGES[1:]),
        ("first_k(1)", STAGES[:2]),
        ("first_k(2)", STAGES[:3]),
        ("first_k(3)", STAGES[:5]),
        ("first_k(4)", STAGES[:6]),
        ("first_k(1) + head", ("stem", "block_0", "head")),
        ("linear_probe", ("head",)),
        ("stages('block_.')", BLOCKS),
        ("stages('block_1', 'down')", ("block_1", "down")),
        ("full", STAGES),
    ],
)
def test_stages_that_train(scheme, stages):
    assert trained_stages(scheme) == list(stages)


@pytest.mark.parametrize("name", ["first_k", "last_k"])
@pytest.mark.parametrize("k", ["0", "5", "-1", "1.0", "True", "'1'"])
def test_k_is_a_number_of_blocks(name, k):
    with pytest.raises(UserError, match="k must be a whole number from 1 to 4, the number of"):
        plan_of(f"{name}({k})")


def test_layer_wise_decay():
    """The stage between two blocks learns as the block before it."""
    assert rates_of("llrd(0.5)") == [1 / 32, 1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 2, 1, 1]


def test_discriminative_rates():
    expected = [2.6**-5, 2.6**-4, 2.6**-3, 2.6**-3, 2.6**-2, 1 / 2.6, 1, 1]
    assert rates_of("discriminative") == pytest.approx(expected)
    assert rates_of("discriminative(2)") == [1 / 32, 1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 2, 1, 1]


def test_slices():
    geometric = [0.01 * 100 ** (layer / 5) for layer in (0, 1, 2, 2, 3, 4, 5, 5)]
    assert rates_of("slice(0.01, 1.0)") == pytest.approx(geometric)
    assert rates_of("slice(0.5)") == [0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.5, 0.5]


def test_rates_multiply():
    found = rates_of("llrd(0.5) + slice(0.5) + full(lr=3)")
    expected = [0.15 / 32, 0.15 / 16, 0.15 / 8, 0.15 / 8, 0.15 / 4, 0.15 / 2, 1.5, 1.5]
    assert found == pytest.approx(expected)


def test_rates_alone_are_rates_of_everything():
    assert plan_of("llrd(0.5)").scheme == "full + llrd(0.5)"
    assert set(plan_of("llrd(0.5) + head").trainable) == {"head/bias", "head/kernel"}


def test_the_first_term_that_selects_a_leaf_has_it():
    plan = plan_of("head(lr=10) + norm(lr=2, decay=0) + last_k(1, lr=0.5)")
    group, lr = leaves_of(plan, "group"), leaves_of(plan, "lr")
    assert (group["head/kernel"], lr["head/kernel"]) == ("head(lr=10)", 10)
    assert (group["block_3/norm1/scale"], lr["norm/bias"]) == ("norm(decay=0, lr=2)", 2)
    assert (group["block_3/conv1/bias"], lr["block_3/conv1/bias"]) == ("last_k(1, lr=0.5)", 0.5)
    assert (group["block_2/conv1/bias"], lr["block_2/conv1/bias"]) == (FROZEN, 0)
    with pytest.raises(UserError, match="'norm' is shadowed.*earlier terms, such as 'full'"):
        plan_of("full + norm")


def test_the_first_rule_that_matches_a_whole_path_has_the_leaf():
    rules = [
        ("block_3/.*bias", "biases(lr=2)"),
        ("kernel", "never"),
        ("block_3/.*", "last"),
        ("head/.*", "biases(lr=2)"),
        (".*", "frozen"),
    ]
    with pytest.raises(UserError, match="rule 'kernel' matches no leaf"):
        plan_of(rules)
    with pytest.raises(UserError, match="rule 'block_3/conv1' matches no leaf"):
        plan_of([("block_3/conv1", "a"), (".*", "frozen")])
    plan = plan_of([rule for rule in rules if rule[0] != "kernel"])
    group = leaves_of(plan, "group")
    assert group["block_3/conv1/bias"] == group["block_3/norm1/bias"] == "biases"
    assert group["head/kernel"] == "biases" and group["block_3/conv1/kernel"] == "last"
    assert group["block_2/conv1/bias"] == FROZEN
    assert {leaf.lr for leaf in plan.leaves if leaf.group == "biases"} == {2}
    with pytest.raises(UserError, match="'block_3/conv1/bias' is shadowed: earlier rules match"):
        plan_of([("block_3/.*", "a"), ("block_3/conv1/bias", "b"), (".*", "frozen")])


@pytest.mark.parametrize("second", ["a(lr=3)", "a(lr=2, decay=0.1)", "a", "a(lr=2, warmup=1)"])
def test_a_group_has_one_set_of_rates(second):
    with pytest.raises(UserError, match="'a' has two different sets of rates"):
        plan_of([("head/.*", "a(lr=2)"), ("norm/.*", second), (".*", "frozen")])


def test_groups_keep_their_decay_schedule_and_warmup():
    plan = plan_of("head(decay=0.3) + norm(decay=0, schedule='linear') + full(warmup=2)")
    assert plan.groups == {
        "head(decay=0.3)": Group(decay=0.3),
        "norm(decay=0, schedule='linear')": Group(decay=0.0, schedule="linear"),
        "full(warmup=2)": Group(warmup=2),
    }
    assert plan_of([(".*", "all(decay=0.2)")]).groups == {"all": Group(decay=0.2)}


def test_the_decay_mask_decides_which_leaves_decay():
    decays = leaves_of(plan_of("full"), "decays")
    assert {p for p, yes in decays.items() if yes} == {p for p in decays if p.endswith("kernel")}
    decays = leaves_of(plan_of("last_k(1)", decay=".*/bias"), "decays")
    assert {p for p, yes in decays.items() if yes} == {
        "block_3/conv1/bias", "block_3/norm1/bias", "norm/bias", "head/bias"
    }  # fmt: skip
    with pytest.raises(UserError, match="sets a decay, but decay_mask='x' matches no leaf"):
        plan_of("head(decay=0.1)", decay="x")


def test_a_regex_of_stages_matches_whole_names():
    # "block_1" is also the beginning of "block_1_extra".
    stages = ("block_1", "block_1_extra", "head")
    params = {name: stage_of("head") for name in stages}
    plan = resolve("stages('block_1')", stages, params, {})
    assert {path.split("/")[0] for path in plan.trainable} == {"block_1"}


def test_a_random_mask_is_drawn_by_its_seed():
    def counts(seed):
        plan = plan_of(f"random_mask('last_k(1)', seed={seed})")
        return {d.module: d.count for d in plan.deltas}

    assert counts(1) == counts(1)
    assert counts(1) != counts(2)
    # As many scalars as the block and the norm have.
    total = sum(x.size for x in jax.tree.leaves([PARAMS["block_3"], PARAMS["norm"]]))
    assert sum(d.count for d in plan_of("random_mask('last_k(1)')").deltas) == total


def test_a_delta_beside_a_batch_norm_does_not_track_its_statistics():
    # SSF adds a scale and a shift under the path of the norm, which are not leaves of the norm
    # itself.
    frozen = plan_of("ssf(on='norm1') + head", STATISTICS)
    assert any(leaf.delta and leaf.path.startswith("block_1/norm1/") for leaf in frozen.leaves)
    assert frozen.tracked == ()
    assert plan_of("norm_only", STATISTICS).tracked == ("block_1", "block_3")


def test_modes_of_stages():
    plan = plan_of("last_k(1)", STATISTICS)
    assert (plan.tracked, plan.dropout) == (("block_3",), STAGES[5:])
    assert plan.prefix == STAGES[:5]
    assert plan.tracked_statistics == ("block_3/norm1/mean", "block_3/norm1/var")
    assert plan.mode.batch_statistics == {"block_3"} and plan.mode.dropout == {*STAGES[5:]}
    # A kernel that trains moves no statistics; a BatchNorm's own bias does.
    assert plan_of([("block_3/conv1/.*", "a"), (".*", "frozen")], STATISTICS).tracked == ()
    assert plan_of([("block_3/norm1/bias", "a"), (".*", "frozen")], STATISTICS).tracked == (
        "block_3",
    )
    every = plan_of("last_k(1)", STATISTICS, batch_norm="track")
    assert (every.tracked, every.prefix) == (("block_1", "block_3"), STAGES[:2])
    kept = plan_of("full", STATISTICS, batch_norm="frozen_all")
    assert (kept.tracked, kept.prefix) == ((), ())
    dropping = plan_of("last_k(1)", STATISTICS, frozen_dropout="train")
    assert (dropping.dropout, dropping.prefix) == (STAGES, ())


def test_measured_rates():
    assert plan_of("auto_rgn").measured == Measurement("rgn", (("batches", 5),))
    snr = Measurement("snr", (("batches", 2), ("threshold", 0.5)))
    assert plan_of("auto_snr(2, threshold=0.5)").measured == snr
    assert not [p for p in plan_of("auto_rgn").trainable if "norm" in p]
    for text, message in (
        ("auto_rgn(0)", "batches must be a whole number >= 1"),
        ("auto_snr(1)", "batches must be a whole number >= 2"),
        ("auto_snr(threshold=0)", "threshold: expected a number > 0"),
        ("auto_rgn + auto_snr", "is shadowed"),
        ("stages('stem') + auto_rgn + norm + auto_snr", "is shadowed"),
    ):
        with pytest.raises(UserError, match=message):
            plan_of(text)


def test_tied_leaves_must_have_one_group():
    array = jnp.zeros((4, 4))
    params = tree.map_with_path(lambda path, x: jnp.zeros(x.shape), PARAMS)
    params["stem"]["conv"]["kernel"] = params["head"]["kernel"] = array
    with pytest.raises(UserError, match="'stem/conv/kernel' and 'head/kernel' are tied"):
        plan_of("head").split(params)
    plan_of("full").split(params)


def test_a_difference_names_options_leaves_and_groups():
    old, new = plan_of("head").to_json(), plan_of("norm(lr=2)", batch_norm="track").to_json()
    lines = difference(old, new).splitlines()
    assert lines[:2] == ["  scheme: 'head' -> 'norm(lr=2)'", "  batch_norm: 'frozen' -> 'track'"]
    assert "  norm/scale: frozen (4,) -> norm(lr=2) (4,) lr x2" in lines
    assert "  head/kernel: head (4, 4) -> frozen (4, 4)" in lines
    assert lines[-2].startswith("  groups: ") and lines[-1].startswith("  dropout: ")
    assert difference(old, old) == ""
    short = difference(old, new, limit=1).splitlines()
    assert "  … and 11 more leaves" in short


def phases_of(scheme):
    return resolve_phases(scheme, STAGES, PARAMS, {})


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("lp_ft", "linear_probe + phase(solve='lbfgs') >> full"),
        ("lp_ft(solve='ridge')", "linear_probe + phase(solve='ridge') >> full"),
        (
            "fine_tune(3)",
            "head + norm(lr=0.1) + phase(epochs=3, schedule='onecycle(pct=0.99)') >> full + "
            "slice(0.01, 1.0) + phase(lr=0.5, reset=True, schedule='onecycle(pct=0.3, div=5)')",
        ),
        (
            "gradual(0.5, groups=2)",
            "stages('norm', 'head') + phase(epochs=0.5) >> "
            "stages('block_2', 'block_3', 'norm', 'head') + phase(epochs=0.5) >> "
            "stages('stem', 'block_0', 'block_1', 'down', 'block_2', 'block_3', 'norm', 'head')",
        ),
        (
            "gradual(order='bottom_up', groups=2) + discriminative",
            "stages('stem', 'block_0', 'block_1', 'down', 'norm', 'head') + discriminative + "
            "phase(epochs=1.0) >> "
            "stages('stem', 'block_0', 'block_1', 'down', 'block_2', 'block_3', 'norm', 'head') + "
            "discriminative",
        ),
        (
            "chain_thaw(2)",
            " >> ".join(f"stages({s!r}) + phase(epochs=2, reset=True)" for s in
                        ("head", *STAGES[:-1])) + " >> full + phase(reset=True)",
        ),
    ],
)  # fmt: skip
def test_programs_are_these_phases(scheme, expected):
    phases = phases_of(scheme)
    assert print_phases(phases) == expected
    assert phases_of(expected) == phases


@pytest.mark.parametrize("scheme", ["gradual", "llrd(0.5)", "discriminative", "slice(0.1, 1.0)"])
def test_schemes_by_block_need_blocks(scheme):
    params = {"stem": PARAMS["stem"], "head": PARAMS["head"]}
    with pytest.raises(UserError, match="scheme .*: .* no blocks"):
        resolve_phases(scheme, ("stem", "head"), params, {})


def test_a_spec_without_resolver_says_so():
    with pytest.raises(TypeError, match="without resolve_scheme"):
        ModelSpec(STAGES, tree.flatten(PARAMS)).select("head")


def test_numbers_are_checked():
    assert positive_int("k", 1) == 1 and non_negative_int("k", 0) == 0
    for wrong in (0, -1, 1.0, True, "1", None):
        with pytest.raises(UserError, match="k must be a whole number >= 1, found"):
            positive_int("k", wrong)
    with pytest.raises(UserError, match="k must be a whole number >= 0, found -1"):
        non_negative_int("k", -1)
    positive("x", 1, 0.5)
    for wrong in (0, -1, float("inf"), float("nan"), True, "1"):
        with pytest.raises(UserError, match="x: expected a number > 0"):
            positive("x", 1, wrong)
