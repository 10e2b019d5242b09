"""The steps that have ended, their speed, and the time that is left."""

import json
import math

import pytest

from finetune_jax.training import pace as pace_lib
from finetune_jax.training.pace import Pace, evaluations_left, log_interval


class Value:
    """A metric on a device that computes it when it is told to, or when the host waits for it."""

    def __init__(self, clock, seconds=1.0):
        self.clock, self.seconds, self.ready = clock, seconds, False

    def is_ready(self):
        return self.ready

    def block_until_ready(self):
        if not self.ready:
            self.clock.now += self.seconds
        self.ready = True
        return self


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(pace_lib.jax, "block_until_ready", lambda x: x.block_until_ready())
    return clock


def test_a_dispatched_step_is_no_finished_step(clock):
    pace = Pace(10, 100, 8)
    values = [Value(clock) for _ in range(6)]
    assert math.isnan(pace.step_seconds) and math.isnan(pace.seconds_left)
    for number, value in enumerate(values[:4], 11):
        pace.note(number, {"loss": value})
    assert pace.finished == 10 and clock.now == 100.0  # nothing waited
    values[0].ready = values[1].ready = True
    assert pace.finished == 12
    for number, value in enumerate(values[4:], 15):
        pace.note(number, {"loss": value})
    assert pace.finished == 12  # four wait on the device
    pace.note(17, {"loss": Value(clock)})
    assert pace.finished == 13 and clock.now == 101.0  # it waited for the fifth last


def test_the_speed_is_that_of_the_steps_and_the_time_left_has_the_evaluations(clock):
    pace = Pace(0, 40, 6, stops=[40], every=10, validation=12, scored=24)
    for number in range(1, 11):
        pace.note(number, {"loss": Value(clock, 2.0)})
    pace.pause()
    assert pace.finished == 10 and pace.step_seconds == 2.0 and pace.examples_per_second == 3.0
    # The first step is not timed: in a run it waits for programs to be loaded and compiled.
    # Three evaluations after this one and the scores at the end, of a third of 1/3 s an example.
    assert pace.seconds_left == pytest.approx(30 * 2 + (3 * 12 + 24) / 9)
    clock.now += 50.0  # the first evaluation compiles
    pace.resume()
    assert pace.step_seconds == 2.0
    for number in range(11, 21):
        pace.note(number, {"loss": Value(clock, 2.0)})
    pace.pause()
    clock.now += 6.0
    pace.resume()
    assert pace.step_seconds == 2.0
    assert pace.seconds_left == pytest.approx(20 * 2 + (2 * 12 + 24) * 0.5)


def test_the_evaluations_that_are_left_are_those_of_the_run():
    stops = [7, 20, 30]
    happen = [n for n in range(1, 31) if n % 5 == 0 or n in stops]
    for step in range(31):
        assert evaluations_left(step, stops, 5) == sum(n > step for n in happen)


def test_a_run_has_twenty_logs_or_more_unless_the_config_says_otherwise():
    for total in range(20, 2000):
        assert total // log_interval(0, total) >= 20
    assert log_interval(0, 7) == 1 and log_interval(0, 10**6) == 50
    assert log_interval(300, 1000) == 300


def test_every_row_of_a_run_has_epoch_learning_rates_and_speed(short_run):
    rows = [json.loads(line) for line in (short_run / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    for row in rows:
        assert row["epoch"] == row["step"] * 16 / 64
        assert row["lr/last_k(1)"] > 0 and row["seconds"] > 0
        examples = {"train": 16, "validation": 40, "test": 50}[row["split"]]
        assert row["examples_per_second"] * row["seconds"] == pytest.approx(examples)


def test_neither_the_first_step_nor_the_first_evaluation_is_in_the_time_left(clock):
    pace = Pace(0, 40, 6, stops=[40], every=10, validation=12, scored=24)
    pace.note(1, {"loss": Value(clock, 60.0)})  # compiles
    clock.now += 60.0
    pace.ended(1)
    pace.note(2, {"loss": Value(clock, 2.0)})
    pace.pause()
    assert pace.finished == 2
    clock.now += 100.0  # compiles
    pace.resume()
    assert pace.seconds_left == pytest.approx(
        38 * pace.step_seconds * (1 + (4 * 12 + 24) / 18 / 38)
    )


def test_a_step_whose_metrics_were_read_has_ended(clock):
    pace = Pace(0, 40, 6)
    for number in (1, 2):
        pace.note(number, {"loss": Value(clock)})
    assert pace.finished == 0
    pace.ended(1)
    assert pace.finished == 1
