"""The values of a log: means over its steps, learning rates of the groups, and times."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import config_of

from finetune_jax.setup import open_setup
from finetune_jax.training import interval as interval_lib
from finetune_jax.training.interval import GroupRates, Interval
from finetune_jax.training.loop import train
from finetune_jax.training.metrics_writer import TIMES, rows_without_times
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import State


def metrics_of(loss, **more):
    return {name: jnp.float32(x) for name, x in {"loss": loss, **more}.items()}


def test_means_are_over_the_interval_and_survive_a_checkpoint():
    losses = [0.1, 2.5, 7.25, 0.3]
    interval = Interval()
    for loss in losses[:2]:
        interval.note(metrics_of(loss, accuracy=1.0))
    saved = json.loads(json.dumps(interval.to_json(), allow_nan=False))
    resumed = Interval.from_json(saved)
    for loss in losses[2:]:
        for one in (interval, resumed):
            one.note(metrics_of(loss, accuracy=0.0))
    expected = np.float32(losses).astype(float).sum() / 4
    assert resumed.means() == interval.means() == {"loss": expected, "accuracy": 0.5}
    assert resumed.steps == 4
    interval.clear()
    assert interval.steps == 0 and interval.to_json()["sums"] == {}
    assert Interval.from_json({}) == Interval()  # a checkpoint of an older version


def test_many_steps_are_joined_on_the_devices_in_their_order(monkeypatch):
    losses = np.random.default_rng(0).normal(size=100).astype(np.float32)
    plain, joined = Interval(), Interval()
    monkeypatch.setattr(interval_lib, "_MOST_JOINED", 3)
    for loss in losses:
        joined.note(metrics_of(loss, skipped=float(loss > 2)))
    monkeypatch.setattr(interval_lib, "_ROWS", 1000)
    for loss in losses:
        plain.note(metrics_of(loss, skipped=float(loss > 2)))
    assert len(joined._joined) == 0 and len(joined._pending) == 4
    expected = 0.0
    for loss in losses[losses <= 2]:
        expected += float(loss)
    assert joined.means() == plain.means()
    assert joined.sums == {"loss": expected} and joined.skipped == (losses > 2).sum() > 0
    assert joined.steps == 100


def test_skipped_steps_are_counted_and_not_averaged():
    interval = Interval()
    interval.note(metrics_of(math.nan, skipped=1))
    assert math.isnan(interval.means()["loss"]) and interval.means()["skipped"] == 1
    interval.note(metrics_of(3.0, skipped=0))
    assert interval.means() == {"loss": 3.0, "skipped": 1}
    interval.note(metrics_of(math.inf, skipped=0))
    again = Interval.from_json(json.loads(json.dumps(interval.to_json(), allow_nan=False)))
    assert not math.isfinite(again.means()["loss"])


def test_the_clock_stands_still_while_it_is_paused(monkeypatch):
    times = iter([10.0, 12.0, 100.0, 103.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    interval = Interval()
    for _ in range(2):
        interval.start()
        interval.pause()
    interval.pause()  # already paused
    assert interval.seconds == 5.0


def test_every_group_has_the_rate_of_its_step(weights):
    scheme = "head(lr=10, schedule='constant') + last_k(3, warmup=2) + llrd(0.5)"
    config = config_of(weights, scheme, optimizer__schedule="linear", optimizer__learning_rate=0.1)
    setup = open_setup(config)
    phase = PhaseRun(setup, 0, 3, 400)
    rates = GroupRates(phase)
    groups = {leaf.group for leaf in setup.plan.leaves if leaf.trains}
    assert len(groups) == 2
    names = {name: [x.lr for x in setup.plan.leaves if x.group == name] for name in groups}
    for step in (3, 4, 10, 300, 402):
        found = rates.at(step, State(*[None] * 7))
        within = step - 3
        factor = within / 2 if within < 2 else 1 - (within - 2) / 398
        for name, own in names.items():
            share = 1.0 if name.startswith("head") else factor
            assert found[f"lr/{name}"] == pytest.approx(0.1 * share * max(own), rel=1e-5)
            if min(own) < max(own):
                assert found[f"lr_min/{name}"] == pytest.approx(0.1 * share * min(own), rel=1e-5)
        assert sum(key.startswith("lr_min/") for key in found) == 1


@pytest.mark.slow
def test_a_run_logs_means_rates_and_times_and_a_resumed_run_the_same(
    weights, tmp_path, monkeypatch
):
    from test_phases_run import run_until

    def config(every):
        return config_of(
            weights, "head", log__every_steps=every, train__steps=8, log__tensorboard=True
        )

    train(open_setup(config(1)), tmp_path / "each")
    train(open_setup(config(4)), tmp_path / "whole")
    run_until(config(4), tmp_path / "killed", 6, monkeypatch)
    train(open_setup(config(4)), tmp_path / "killed")
    each, whole, killed = (
        rows_without_times(tmp_path / name / "metrics.jsonl")
        for name in ("each", "whole", "killed")
    )
    assert whole == killed
    steps = [row for row in each if row["split"] == "train"]
    logged = [row for row in whole if row["split"] == "train"]
    assert [row["step"] for row in logged] == [4, 8]
    for row in logged:
        part = steps[row["step"] - 4 : row["step"]]
        for name in ("loss", "accuracy", "grad_norm"):
            assert row[name] == pytest.approx(np.mean([x[name] for x in part]), rel=1e-12)
        assert row["lr/head"] == pytest.approx(part[-1]["lr/head"])
    rows = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "train":
            assert row["seconds"] > 0 and {*TIMES} <= row.keys()
            assert row["examples_per_second"] * row["seconds"] == pytest.approx(4 * 16)
    (events,) = (tmp_path / "whole").glob("events*")
    content = events.read_bytes()
    assert b"train/lr/head" in content and b"train/examples_per_second" in content
