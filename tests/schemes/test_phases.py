"""Phases and rates: lengths, programs, canonical text, and learning rates against the formulas."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.models import build, initialise
from finetune_jax.schemes import lengths, print_phases, resolve, resolve_phases
from finetune_jax.training.optimizer import hyper_parameters, make_rates


def load(name):
    module = build(name, 10, image_size=32)
    return module, jax.eval_shape(lambda k: initialise(module, 32, k), jax.random.key(0))


MODELS = {name: load(name) for name in ("vit_ti16", "resnet20_cifar")}


def phases_of(name, scheme, **options):
    module, abstract = MODELS[name]
    return resolve_phases(
        scheme, module.stages, abstract["params"], abstract["batch_stats"], **options
    )


def plan_of(name, scheme):
    module, abstract = MODELS[name]
    return resolve(scheme, module.stages, abstract["params"], abstract["batch_stats"])


def rates_by_stage(plan):
    return {leaf.stage: leaf.lr for leaf in plan.leaves}


def test_layer_wise_decay_counts_from_the_head():
    rates = rates_by_stage(plan_of("vit_ti16", "llrd(0.75)"))
    assert rates["head"] == rates["norm"] == 1
    for block in range(12):
        assert rates[f"block_{block}"] == pytest.approx(0.75 ** (12 - block))
    assert rates["stem"] == pytest.approx(0.75**13)


def test_deltas_that_are_in_place_train_in_a_later_phase():
    first, second, third = phases_of("vit_ti16", "lora(rank=2) + head >> head >> deltas(lr=2)")
    added = {leaf.path for leaf in first.plan.leaves if leaf.delta}
    assert added and not added & {*second.plan.trainable}
    assert {*third.plan.trainable} == added
    assert {leaf.lr for leaf in third.plan.leaves if leaf.trains} == {2.0}
    with pytest.raises(UserError, match="no deltas are in place"):
        phases_of("vit_ti16", "deltas + head")


def test_rates_apply_to_what_the_other_terms_claim():
    plan = plan_of("vit_ti16", "llrd(0.5) + last_k(2, lr=3) + norm(lr=10)")
    rates = {leaf.path: leaf.lr for leaf in plan.leaves if leaf.trains}
    assert rates["block_10/mlp_in/kernel"] == pytest.approx(3 * 0.25)
    assert rates["block_3/norm1/scale"] == pytest.approx(10 * 0.5**9)
    assert "block_3/mlp_in/kernel" not in rates
    low_rank = plan_of("vit_ti16", "llrd(0.5) + lora(rank=2, plus=16)")
    rates = {leaf.path: leaf.lr for leaf in low_rank.leaves if leaf.trains}
    assert rates["block_11/attn/query/lora_a"] == pytest.approx(0.5)
    assert rates["block_11/attn/query/lora_b"] == pytest.approx(8)


def test_discriminative_rates_and_slices():
    rates = rates_by_stage(plan_of("resnet20_cifar", "discriminative"))
    assert rates["layer3_block2"] / rates["layer3_block1"] == pytest.approx(2.6)
    rates = rates_by_stage(plan_of("resnet20_cifar", "slice(0.01, 1.0)"))
    assert (rates["stem"], rates["head"]) == (pytest.approx(0.01), pytest.approx(1))
    assert rates["layer1_block0"] / rates["stem"] == pytest.approx(100**0.1)
    rates = rates_by_stage(plan_of("resnet20_cifar", "slice(0.5)"))
    assert rates["head"] == 0.5 and rates["stem"] == rates["layer3_block2"] == 0.05


def curve(scheme, steps, **optimizer):
    """Learning rate of two leaves at every step of a run of phases."""
    phases = phases_of("resnet20_cifar", scheme)
    config = default().optimizer
    config.update({"learning_rate": 0.4, "schedule": "constant", **optimizer})
    counts, start, rows = lengths(phases, steps, steps / 4), 0, []
    for phase, count in zip(phases, counts, strict=True):
        rates = make_rates(config, phase, start, count)
        hyper = hyper_parameters(config, phase.plan)
        for step in range(start, start + count):
            flat = tree.flatten(rates(step, hyper))
            rows.append({p: float(flat.get(p, 0)) for p in ("head/kernel", "stem/conv/kernel")})
        start += count
    return [r["head/kernel"] for r in rows], [r["stem/conv/kernel"] for r in rows]


def one_cycle(steps, peak, pct, div, final=1e5):
    """fastai's combined_cos(pct, peak / div, peak, peak / final), written out."""

    def cosine(a, b, t):
        return a + (b - a) * (1 - np.cos(np.pi * t)) / 2

    return [
        cosine(peak / div, peak, t / pct)
        if t < pct
        else cosine(peak, peak / final, (t - pct) / (1 - pct))
        for t in np.arange(steps) / steps
    ]


def test_fine_tune_follows_fastai_step_by_step():
    head, stem = curve("fine_tune(freeze_epochs=1)", 40)
    np.testing.assert_allclose(head[:10], one_cycle(10, 0.4, 0.99, 25), rtol=1e-5)
    assert stem[:10] == [0] * 10
    np.testing.assert_allclose(head[10:], one_cycle(30, 0.2, 0.3, 5), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(stem[10:], one_cycle(30, 0.002, 0.3, 5), rtol=1e-4, atol=1e-9)


def test_slanted_triangle_follows_ulmfit():
    head, _ = curve("full", 40, schedule="slanted(cut=0.1, ratio=32)")
    cut = 4
    p = [t / cut if t < cut else 1 - (t - cut) / (cut * (1 / 0.1 - 1)) for t in range(40)]
    np.testing.assert_allclose(head, [0.4 * (1 + x * 31) / 32 for x in p], rtol=1e-5)


def slanted(steps, peak, cut=0.1, ratio=32):
    """ULMFiT's slanted triangle, written out."""
    corner = max(1, int(steps * cut))
    p = [t / corner if t < corner else 1 - (t - corner) / (corner * (1 / cut - 1))
         for t in range(steps)]  # fmt: skip
    return [peak * (1 + x * (ratio - 1)) / ratio for x in p]


def test_ulmfit_whole_follows_its_formulas_step_by_step():
    """Gradual unfreezing, each phase a slanted triangle, the stem at 2.6^-10 of the head."""
    scheme = "gradual(epochs=1, groups=2) + discriminative(2.6)"
    head, stem = curve(scheme, 40, schedule="slanted(cut=0.1, ratio=32)")
    np.testing.assert_allclose(head, slanted(10, 0.4) * 2 + slanted(20, 0.4), rtol=1e-5)
    expected = [0.0] * 20 + [x * 2.6**-10 for x in slanted(20, 0.4)]
    np.testing.assert_allclose(stem, expected, rtol=1e-5)


def cosine(steps, peak, warmup=0):
    ramp = [peak * t / warmup for t in range(warmup)]
    rest = steps - warmup
    return ramp + [peak * (1 + np.cos(np.pi * t / rest)) / 2 for t in range(rest)]


@pytest.mark.parametrize(
    ("scheme", "factor"),
    [
        ("llrd(0.75)", 0.75**10),
        ("discriminative(1.5)", 1.5**-10),
        ("slice(0.01, 1.0)", 0.01),
        ("full(lr=0.5)", 0.5),
    ],
)
def test_rates_by_layer_scale_the_schedule_at_every_step(scheme, factor):
    head, stem = curve(scheme, 20, schedule="cosine", warmup_steps=4)
    top = 0.5 if scheme.startswith("full") else 1.0
    np.testing.assert_allclose(head, cosine(20, 0.4 * top, 4), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(stem, cosine(20, 0.4 * factor, 4), rtol=1e-5, atol=1e-8)


def test_phase_rates_and_warm_up_step_by_step():
    """The run's warm-up is the first phase's alone; a phase's factor scales all of it."""
    scheme = "head + phase(epochs=1) >> full + phase(lr=0.1, schedule='linear', warmup=2)"
    head, stem = curve(scheme, 40, schedule="cosine", warmup_steps=5)
    np.testing.assert_allclose(head[:10], cosine(10, 0.4, 5), rtol=1e-5, atol=1e-8)
    line = [0, 0.02] + [0.04 * (1 - t / 28) for t in range(28)]
    np.testing.assert_allclose(head[10:], line, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(stem[10:], line, rtol=1e-5, atol=1e-8)
    head, stem = curve("chain_thaw(epochs=0.25)", 40, schedule="constant")
    # Two steps for the head, two for the stem, 18 for the nine blocks, 18 for everything.
    np.testing.assert_allclose(head, [0.4] * 2 + [0] * 20 + [0.4] * 18, rtol=1e-6)
    np.testing.assert_allclose(stem, [0] * 2 + [0.4] * 2 + [0] * 18 + [0.4] * 18, rtol=1e-6)


def test_a_b_of_lora_plus_learns_at_its_ratio_at_every_step():
    phases = phases_of("vit_ti16", "lora(rank=2, plus=16) + head >> lora(rank=2, plus=16)")
    config = default().optimizer
    config.update({"learning_rate": 0.1, "schedule": "cosine"})
    for phase in phases:
        rates, hyper = make_rates(config, phase, 0, 10), hyper_parameters(config, phase.plan)
        for step in range(10):
            flat = tree.flatten(rates(step, hyper))
            a, b = (flat[f"block_3/attn/query/lora_{x}"] for x in "ab")
            np.testing.assert_allclose(a, cosine(10, 0.1)[step], rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(b, 16 * a, rtol=1e-6)


def test_a_delta_trains_in_the_phases_that_name_it():
    def trained(phase):
        return {leaf.path for leaf in phase.plan.leaves if leaf.trains and leaf.delta}

    first, second, third = phases_of(
        "vit_ti16", "lora(rank=2) + head >> full >> full + lora(rank=2)"
    )
    assert trained(first) == trained(third) and len(trained(first)) == 48
    assert trained(second) == set() and second.plan.deltas == first.plan.deltas
    for phase in phases_of("vit_ti16", "gradual(groups=2) + lora(rank=2)"):
        assert trained(phase) == trained(first)
    # Modules that a first phase added are no modules of the base.
    _, after = phases_of("vit_ti16", "houlsby + head >> ssf + head")
    assert not any("adapter" in delta.module for delta in after.plan.deltas[24:])
    _, control = phases_of("vit_ti16", "lora(rank=2) >> random_mask('lora(rank=2)') + head")
    assert len(control.plan.deltas) > len(first.plan.deltas)


def test_a_rule_may_have_its_own_schedule():
    text = "head(lr=10, schedule='linear', warmup=2) + last_k(1)"
    phases = phases_of("resnet20_cifar", text)
    config = default().optimizer
    config.update({"learning_rate": 0.1, "schedule": "constant"})
    rates, hyper = make_rates(config, phases[0], 0, 10), hyper_parameters(config, phases[0].plan)
    flat = [tree.flatten(rates(step, hyper)) for step in range(10)]
    expected = [0, 0.5] + [1 - t / 8 for t in range(8)]
    np.testing.assert_allclose([float(f["head/kernel"]) for f in flat], expected, rtol=1e-6)
    assert {round(float(f["layer3_block2/conv1/kernel"]), 6) for f in flat} == {0.1}


def test_gradual_unfreezing_grows_from_the_top_and_from_the_bottom():
    down = phases_of("resnet20_cifar", "gradual(epochs=0.5)")
    trained = [{p.split("/")[0] for p in phase.plan.trainable} for phase in down]
    assert trained[0] == {"head"} and trained[1] == {"head", "layer3_block2"}
    assert all(a < b for a, b in zip(trained, trained[1:], strict=False))
    assert trained[-1] == set(MODELS["resnet20_cifar"][0].stages) and len(trained) == 10
    up = phases_of("vit_ti16", "gradual(order='bottom_up', groups=3)")
    trained = [{p.split("/")[0] for p in phase.plan.trainable} for phase in up]
    assert trained[0] == {"stem", "block_0", "block_1", "block_2", "block_3", "norm", "head"}
    assert len(trained) == 3 and trained[-1] == set(MODELS["vit_ti16"][0].stages)


def test_chain_thaw_trains_each_stage_alone():
    phases = phases_of("resnet20_cifar", "chain_thaw")
    trained = [sorted({p.split("/")[0] for p in phase.plan.trainable}) for phase in phases]
    stages = MODELS["resnet20_cifar"][0].stages
    assert trained[:3] == [["head"], ["stem"], ["layer1_block0"]]
    assert len(trained) == len(stages) + 1 and trained[-1] == sorted(stages)
    assert all(phase.reset for phase in phases)


def test_terms_beside_a_program_join_every_phase():
    phases = phases_of("vit_ti16", "gradual(groups=2) + discriminative")
    for phase in phases:
        assert "discriminative" in phase.plan.scheme


def test_lengths_share_what_is_left():
    phases = phases_of(
        "vit_ti16", "head + phase(epochs=2) >> full >> last_k(1) + phase(steps=5) >> full"
    )
    assert lengths(phases, 50, 10.0) == [20, 12, 5, 13]
    with pytest.raises(UserError, match="1 steps are left for 2 phases"):
        lengths(phases, 26, 10.0)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("head >> ful", "Did you mean 'full'"),
        ("head + phase(epoch=2) >> full", "Did you mean 'epochs'"),
        ("head + phase(epochs=2, steps=3) >> full", "not both"),
        ("head + phase(epochs=0) >> full", "number > 0"),
        ("full + phase(solve='lbfgs')", "solves the head alone"),
        ("head + phase(solve='sgd') >> full", "unknown solver 'sgd'"),
        ("phase(epochs=2) >> full", "sum of schemes"),
        ("gradual(order='sideways')", "unknown order"),
        ("gradual + lp_ft", "two programs"),
        ("gradual(groups=-1)", "whole number >= 0"),
        ("gradual(groups=2.5)", "whole number >= 0"),
        ("head + phase(optimizer='adam') >> full", "Did you mean 'adamw'"),
        ("head + phase(warmup=-5) >> full", "whole number >= 0"),
        ("head + phase(schedule=3) >> full", "must be text"),
        ("head + phase(clip=-1) >> full", "number >= 0"),
        ("llrd(0)", "expected a number > 0"),
        ("llrd(0.5, lr=3)", "takes no"),
    ],
)
def test_bad_phases_say_what_is_wrong(scheme, message):
    with pytest.raises(UserError) as error:
        phases_of("resnet20_cifar", scheme)
    assert message in str(error.value)


masks = st.sampled_from(
    ["full", "head", "norm", "norm_only", "bias_only", "last_k(2)", "first_k(1)", "stages('stem')",
     "lora(rank=2)", "ssf", "linear_probe(lr=10.0)", "last_k(1, decay=0.1, lr=0.5)",
     "other_schemes:top_heads(2, on='conv1', lr=0.5)", "other_schemes:beside_last(2)"]
)  # fmt: skip
modifiers = st.sampled_from(
    ["llrd(0.9)", "discriminative", "slice(0.1, 1.0)", "other_schemes:halved"]
)
options = st.sampled_from(["", " + phase(lr=0.5)", " + phase(epochs=2, schedule='linear')"])
sums = st.tuples(st.lists(st.one_of(masks, modifiers), min_size=1, max_size=4), options).map(
    lambda pair: " + ".join(pair[0]) + pair[1]
)
programs = st.lists(sums, min_size=1, max_size=3).map(" >> ".join)


@settings(max_examples=150, deadline=None)
@given(programs)
def test_any_scheme_is_total_or_refused_and_prints_to_itself(text):
    try:
        phases = phases_of("resnet20_cifar", text)
    except UserError:
        return
    base = set(tree.flatten(MODELS["resnet20_cifar"][1]["params"]))
    for phase in phases:
        paths = [leaf.path for leaf in phase.plan.leaves]
        assert len(paths) == len(set(paths)) and base <= set(paths)
        assert all(leaf.lr > 0 for leaf in phase.plan.leaves if leaf.trains)
        assert {leaf.group for leaf in phase.plan.leaves if leaf.trains} == set(phase.plan.groups)
    printed = print_phases(phases)
    again = phases_of("resnet20_cifar", printed)
    assert again == phases and print_phases(again) == printed


@settings(max_examples=60, deadline=None)
@given(st.permutations(["head", "norm", "last_k(1)", "first_k(2)"]))
def test_the_order_of_terms_changes_groups_but_never_what_trains(terms):
    try:
        plan = plan_of("resnet20_cifar", " + ".join(terms))
    except UserError as error:
        assert "shadowed" in str(error)
        return
    expected = set()
    for term in terms:
        expected |= set(plan_of("resnet20_cifar", term).trainable)
    assert set(plan.trainable) == expected
