"""Reproductions are complete, verdicts follow from figures, and the list is up to date."""

import importlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import __main__ as listing
from experiments.reproduction import (
    Measured,
    NotRun,
    Reproduction,
    Target,
    overall,
    record,
    verdict,
)
from finetune_jax.cli import load_config
from finetune_jax.models import entry_of
from finetune_jax.schemes import resolve_phases

REPRODUCTIONS, _ = listing.scripts()

PODS = {
    "big_vision_transfer": ["imagenet2012", "cifar10", "oxford_flowers102"],
    "vit_jax": ["b16,cifar10", "l32,imagenet2012"],
    "bit_hyperrule": ["r50x1,cifar10", "r152x2,imagenet2012"],
    "vtab": ["cifar100,lora", "smallnorb_azimuth,vpt_deep", "kitti,ssf", "dtd,adapter"],
    "ssf_cifar100": ["ssf", "bitfit"],
    "glue": ["sst2,lora", "stsb,full_roberta", "mnli,bitfit"],
}


@pytest.mark.parametrize("one", REPRODUCTIONS, ids=lambda one: one.name)
def test_every_reproduction_says_what_it_must(one):
    module = importlib.import_module(f"experiments.{one.name}")
    assert one.targets and one.command.startswith(f"python -m experiments.{one.name}")
    assert len({target.name for target in one.targets}) == len(one.targets)
    for field in ("paper", "claim", "hazards", "hardware", "needs"):
        assert getattr(one, field), field
    for word in ("Hazards:", "Hardware:", "Command"):
        assert word in module.__doc__
    assert one.command in module.__doc__
    for target in one.targets:
        assert target.kind != "within" or target.unit.startswith(("%", "of"))


def test_the_list_is_up_to_date():
    assert (listing.FOLDER / "README.md").read_text() == listing.readme(), (
        "run python -m experiments --write"
    )


@given(st.floats(-100, 100), st.floats(0, 10), st.floats(-120, 120))
def test_within_means_within(value, tolerance, measured):
    target = Target("t", value, "within", tolerance)
    good = verdict(target, Measured(measured)) == "reproduced"
    gap = abs(value - measured)
    if abs(gap - tolerance) > 1e-6:
        assert good == (gap < tolerance)


def test_a_direction_needs_the_whole_interval():
    above, below = Target("t", 0.0, "above"), Target("t", 0.0, "below")
    assert verdict(above, Measured(1.0, 0.1, 2.0)) == "reproduced"
    assert verdict(above, Measured(1.0, -0.1, 2.0)) == "not reproduced"
    assert verdict(above, Measured(1.0)) == "not reproduced", "without an interval nothing is sure"
    assert verdict(below, Measured(-1.0, -2.0, -0.1)) == "reproduced"
    assert verdict(below, Measured(1.0, 0.1, 2.0)) == "not reproduced"
    assert verdict(above, NotRun("a pod")) == "not run (needs a pod)"


def test_an_overall_verdict_counts():
    assert overall(["reproduced"] * 2) == "reproduced"
    assert overall(["not reproduced", "not run (needs x)"]) == "not reproduced; 1 not run"
    assert overall(["reproduced", "not reproduced"]) == "partly reproduced (1 of 2 targets)"
    assert overall(["not run (needs x)"] * 2) == "not run (needs x)"


def test_a_record_holds_figure_verdict_and_origin(tmp_path):
    one = Reproduction(
        "n", "paper", "claim", (Target("a", 8.27, "within", 0.005, source="s"), Target("b", 1.0)),
        "hardware", "hazards", "command",
    )  # fmt: skip
    about = {"config_hash": "abc", "versions": {"jax": "1"}, "seconds": 3.0}
    found = {"a": Measured(8.27, 7.7, 8.9, 10_000), "b": NotRun("a pod")}
    text = record(one, found, about, "more", tmp_path).read_text()
    for part in ("8.27 [7.7, 8.9]", "10,000", "not run (needs a pod)", "abc", "jax 1", "more"):
        assert part in text
    with pytest.raises(ValueError, match="expected figures"):
        record(one, {"a": found["a"]}, about, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, all_ in PODS.items() for argument in all_]
)
def test_a_config_for_pods_loads_and_its_scheme_resolves(name, argument):
    from finetune_jax import config as config_lib
    from finetune_jax.data.augment import parse_augment
    from finetune_jax.models import build, initial_variables

    config = load_config(f"configs/pods/{name}.py:{argument}")
    config_lib.validate(config)
    entry = entry_of(config.model.name)
    parse_augment(config.data.augment)
    size = config.data.max_tokens or config.data.image_size or entry.inputs.size
    options = {"image_size": size} if not entry.tokens else {}
    model = build(config.model.name, 5, **options)
    abstract = initial_variables(model, size, stages=())
    phases = resolve_phases(
        config.scheme, model.stages, abstract["params"], abstract.get("batch_stats", {}),
        batch_norm=config.batch_norm, frozen_dropout="eval", decay=config.decay_mask,
    )  # fmt: skip
    assert phases[0].plan.trainable


def test_the_hyperrule():
    from configs.pods.bit_hyperrule import hyperrule

    assert hyperrule(1_020, 500) == (500, 480, False)
    assert hyperrule(50_000, 32) == (10_000, 128, True)
    assert hyperrule(1_281_167, 469) == (20_000, 480, True)


def test_both_averages_of_vtab():
    from configs.pods.vtab import GROUPS, averages

    # LoRA's row of NOAH's table 1, whose group means give 74.60.
    row = [67.1, 91.4, 69.4, 98.8, 90.4, 85.3, 54.0, 84.9, 95.3, 84.4, 73.6, 82.9, 69.2, 49.8, 78.5,
           75.7, 47.1, 31.0, 44.0]  # fmt: skip
    tasks = [task for group in GROUPS.values() for task in group]
    over_tasks, over_groups = averages(dict(zip(tasks, row, strict=True)))
    assert over_tasks == pytest.approx(72.25, abs=0.005)
    assert over_groups == pytest.approx(74.60, abs=0.005)
    assert not math.isclose(over_tasks, over_groups, abs_tol=1)
