"""Values that would have no effect, or another effect than expected, are refused or reported."""

import math

import pytest

from finetune_jax import config as config_lib
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.schemes.schedules import parse_schedule
from finetune_jax.setup import open_setup
from finetune_jax.training.first_lines import length_remarks

DEFAULT = default()
NUMBERS = [key for key in config_lib.keys(DEFAULT) if isinstance(DEFAULT[key], float)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(key, value):
    config = default()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key}: expected a finite number"):
        config_lib.validate(config)


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "regression", "segmentation"])
def test_smoothing_of_a_task_without_classes_is_refused(task):
    config = default()
    config.task.name, config.task.label_smoothing = task, 0.1
    with pytest.raises(UserError, match="task.label_smoothing: 0.1 smooths classes"):
        config_lib.validate(config)
    config.task.label_smoothing = 0.0
    config_lib.validate(config)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "onecycle(pct=0.3)"])
@pytest.mark.parametrize("total", [1, 2, 5])
def test_a_warm_up_leaves_a_step_that_trains(schedule, total):
    rate = parse_schedule(schedule, total, warmup=100)
    assert float(rate(total - 1)) > 0
    if total > 1:
        assert float(rate(0)) == 0


def test_a_cut_warm_up_and_small_statistics_are_reported():
    def remarks(**changes):
        config = default()
        config.update_from_flattened_dict(
            {"train.steps": 10, "train.batch_size": 32, "scheme": "full", **changes}
        )
        setup = open_setup(config)
        lengths = setup.phase_steps(1000)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return list(length_remarks(setup, starts, lengths, 1000))

    assert remarks() == []
    assert remarks(**{"optimizer.warmup_steps": 9}) == []
    (line,) = remarks(**{"optimizer.warmup_steps": 500})
    assert "phase 1: its warm-up of 500 steps is cut to 9" in line
    scheme = "head + phase(steps=4) >> full(warmup=7)"
    (line,) = remarks(**{"scheme": scheme})
    assert "phase 2: its warm-up of 7 steps is cut to 5" in line
    (line,) = remarks(**{"train.accumulate": 4})
    assert "statistics of 8 images, not of 32" in line
    assert remarks(**{"train.accumulate": 4, "scheme": "head"}) == []


@pytest.mark.parametrize("key", ["weights", "prefix", "ignore"])
def test_a_choice_of_tensors_needs_a_weight_file(key):
    config = default()
    config.pretrained[key] = "ema"
    with pytest.raises(UserError, match=f"pretrained.{key}: 'ema' chooses tensors of a weight"):
        config_lib.validate(config)
    config.pretrained.path = "x.safetensors"
    config_lib.validate(config)


@pytest.mark.parametrize("seed", [2**31, 2**40, -(2**31) - 1])
def test_a_seed_has_32_bits(seed):
    config = default()
    config.seed = seed
    with pytest.raises(UserError, match="^seed: expected a whole number from -2147483648 to 2147"):
        config_lib.validate(config)


def test_the_key_of_a_wrong_standard_deviation_is_named():
    config = default()
    config.data.std = (0.0, 0.2, 0.2)
    with pytest.raises(UserError, match=r"^data.std: expected three numbers above 0, found \(0.0,"):
        config_lib.validate(config)


def test_means_of_pixels_from_0_to_255_are_refused():
    config = default()
    config.data.mean, config.data.std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    with pytest.raises(UserError, match="expected values in .0, 1.*divide values .* by 255"):
        config_lib.validate(config)
