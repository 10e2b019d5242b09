"""Schemes, programs and deltas of other packages, named ``package.module:name``."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from other_schemes import Shift

from finetune_jax import tree
from finetune_jax.deltas import Delta, DeltaLeaf, from_json
from finetune_jax.deltas import doors_of as doors_of_deltas
from finetune_jax.errors import UserError
from finetune_jax.models import initialise
from finetune_jax.models.vit import ViT
from finetune_jax.schemes import difference, doors_of, print_phases, resolve, resolve_phases

MODEL = ViT(width=8, depth=3, heads=2, patch=16, num_classes=5)
ABSTRACT = jax.eval_shape(lambda key: initialise(MODEL, 32, key), jax.random.key(0))


def phases_of(scheme, **options):
    return resolve_phases(scheme, MODEL.stages, ABSTRACT["params"], {}, **options)


def plan_of(scheme):
    return resolve(scheme, MODEL.stages, ABSTRACT["params"], {})


@pytest.mark.parametrize(
    "scheme",
    [
        "other_schemes:top_heads(2)",
        "other_schemes:top_heads(1, lr=0.1) + norm",
        "other_schemes:top_heads(1, on='norm2') + llrd(0.5)",
        "llrd(0.5) + other_schemes:halved",
        "other_schemes:shifts(times=2.0) + head",
        "other_schemes:shifts + head >> full + phase(lr=0.5) >> other_schemes:shifts + norm",
        "random_mask('other_schemes:top_heads(1)')",
        "other_schemes:beside_last(1)",
        "other_schemes:head_then_all(2)",
        "other_schemes:head_then_all + discriminative",
        "lp_ft >> other_schemes:top_heads(1) + phase(steps=3)",
    ],
)
def test_a_scheme_with_doors_prints_to_itself(scheme):
    phases = phases_of(scheme)
    printed = print_phases(phases)
    again = phases_of(printed)
    assert again == phases and print_phases(again) == printed
    assert [p.plan.hash for p in again] == [p.plan.hash for p in phases]


def test_a_term_of_another_package_selects_its_leaves_at_its_rate():
    plan = plan_of("norm(lr=3) + other_schemes:top_heads(2, lr=0.1) + llrd(0.5)")
    rates = {leaf.path: leaf.lr for leaf in plan.leaves if leaf.trains}
    attention = {p for p in rates if "/attn/" in p}
    assert {p.split("/")[0] for p in attention} == {"block_1", "block_2"}
    assert len(attention) == 2 * 4 * 2 and len(rates) == 16 + 2 * 7
    assert rates["block_1/attn/query/kernel"] == pytest.approx(0.1 * 0.5**2)
    assert rates["block_1/norm1/scale"] == pytest.approx(3 * 0.5**2)
    assert plan.scheme == "norm(lr=3) + other_schemes:top_heads(2, lr=0.1) + llrd(0.5)"


def test_a_scheme_of_another_package_may_use_ours():
    plan = plan_of("other_schemes:beside_last(1)")
    assert {leaf.stage for leaf in plan.leaves if leaf.trains} == {"stem", "block_0", "block_1"}


def test_a_program_of_another_package_makes_phases():
    first, second = phases_of("other_schemes:head_then_all(3) + other_schemes:halved")
    assert first.epochs == 3 and second.lr == 0.5
    assert first.plan.scheme == "head + other_schemes:halved"
    expected = ("other_schemes:head_then_all", "other_schemes:halved")
    assert first.plan.doors == second.plan.doors == expected


def test_the_plan_records_who_provides_what():
    plan = plan_of("other_schemes:shifts + random_mask('other_schemes:top_heads(1)')")
    names = ["other_schemes:shifts", "other_schemes:top_heads", "other_schemes:Shift"]
    expected = [{"door": name, "package": "other_schemes", "version": ""} for name in names]
    values = json.loads(json.dumps(plan.to_json()))
    assert values["providers"] == expected
    assert doors_of(values) == tuple(names)
    # A file may not list all packages that it needs; the kinds of its deltas are imported anyway.
    del values["providers"]
    assert doors_of(values) == ("other_schemes:Shift",)
    assert doors_of_deltas(values["deltas"]) == ("other_schemes:Shift",)
    ours = plan_of("lora(rank=2) + head").to_json()
    assert "providers" not in ours and "doors" not in ours and doors_of(ours) == ()


def test_another_version_of_a_package_changes_the_record_and_not_the_hash(monkeypatch):
    plan = plan_of("other_schemes:top_heads(1)")
    old = plan.to_json()
    monkeypatch.setattr(
        "finetune_jax.doors.provider", lambda name: {"door": name, "package": "p", "version": "2"}
    )
    new = plan.to_json()
    assert old["hash"] == new["hash"] and old["providers"] != new["providers"]
    assert "'version': ''" in difference(old, new) and "'version': '2'" in difference(old, new)


def test_a_delta_of_another_package_runs_and_is_read_back():
    plan = plan_of("other_schemes:shifts(2) + head")
    assert plan.deltas == tuple(Shift(f"block_{i}/attn/query", 2) for i in range(3))
    values = [json.loads(json.dumps(delta.to_json())) for delta in plan.deltas]
    assert values[0] == {
        "kind": "other_schemes:Shift", "module": "block_0/attn/query", "times": 2
    }  # fmt: skip
    assert tuple(map(from_json, values)) == plan.deltas

    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * generator.normal(size=x.shape), ABSTRACT["params"])
    flat = tree.flatten(plan.add_deltas(params, jax.random.key(0)))
    shifted = tree.flatten(params)
    for delta in plan.deltas:
        flat[delta.path("shift")] = jnp.full(8, 0.25)
        shifted[f"{delta.module}/bias"] = shifted[f"{delta.module}/bias"] + 0.5
    images = generator.normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = plan.adapt(MODEL).apply({"params": tree.unflatten(flat)}, images)
    expected = MODEL.apply({"params": tree.unflatten(shifted)}, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_delta_that_cannot_be_named_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Local(Delta):
        kind = "local"

        def leaves(self, base):
            return {self.path("x"): DeltaLeaf((1,))}

    with pytest.raises(UserError, match="top level of a module"):
        Local("head").to_json()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other_schemas:Shift", "cannot import 'other_schemas'"),
        ("other_schemes:Shfit", "Did you mean 'Shift'"),
        ("other_schemes:NUMBER", "expected type, found int"),
        ("other_schemes:UserError", "expected a subclass of finetune_jax.deltas.Delta"),
        ("lroa", "Did you mean 'lora'"),
    ],
)
def test_a_wrong_kind_of_delta_says_what_is_wrong(kind, message):
    with pytest.raises(UserError) as error:
        from_json({"kind": kind, "module": "head"})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("other_schemas:top_heads(2)", "cannot import 'other_schemas'"),
        ("other_schemes:top_heds(2)", "Did you mean 'top_heads'"),
        ("other_schemes:NUMBER", "expected function, found int"),
        ("other_schemes:top_heads", "missing a required argument: 'k'; other_schemes:top_heads "
                                    "takes (k, on, lr, decay, schedule, warmup)"),
        ("other_schemes:top_heads(2, onn='attn')", "unexpected keyword argument 'onn'"),
        ("other_schemes:top_heads(9)", "scheme other_schemes:top_heads(9): k must be at most 3"),
        ("other_schemes:top_heads(2, lr=-1)", "lr must be a number > 0"),
        ("other_schemes:text", "the function returned ['head', 'full']"),
        ("other_schemes:nothing", "the function returned []"),
        ("other_schemes:wrong_leaf", "no leaf 'head/kernal'. Did you mean 'head/kernel'"),
        ("other_schemes:wrong_rates", "expected a rate for every leaf, none for 'stem/"),
        ("other_schemes:zero_rates", "expected rates > 0, found 0.0"),
        ("other_schemes:wrong_delta", "expected a finetune_jax.deltas.Delta, found 'head'"),
        ("other_schemes:head_then_all(lr=3)", "takes no lr, decay, schedule, warmup"),
        ("lp_ft + other_schemes:head_then_all", "two programs"),
        ("random_mask('other_schemes:head_then_all')", "expected a single phase"),
        ("random_mask('lp_ft')", "expected a single phase"),
        ("[('head/.*', 'other_schemes:top_heads'), ('.*', 'frozen')]", "is a label"),
    ],
)  # fmt: skip
def test_a_wrong_door_says_what_is_wrong(scheme, message):
    with pytest.raises(UserError) as error:
        phases_of(scheme)
    assert message in str(error.value)
