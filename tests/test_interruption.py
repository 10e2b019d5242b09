"""Signals: a run finishes its step, saves and says how to go on; a second signal ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT

from finetune_jax import interruption
from finetune_jax.cli import load_config
from finetune_jax.ending import ending
from finetune_jax.interruption import Interrupted, held, signal_number
from finetune_jax.setup import open_setup
from finetune_jax.training.arms import run_arms
from finetune_jax.training.fused_step import FusedStep
from finetune_jax.training.loop import train
from finetune_jax.training.metrics_writer import MetricsWriter


@pytest.fixture
def handlers(monkeypatch):
    """The handlers of a command, for one test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interruption, "_SIGNALS", interruption._Signals())
    interruption.install()
    yield
    os.close(signal.set_wakeup_fd(-1))
    for number, handler in before.items():
        signal.signal(number, handler)


def config_of(small_config, steps=6, seed=0):
    config = load_config(str(small_config))
    config.train.steps, config.seed = steps, seed
    config.checkpoint.every_steps = 100
    return config


def lines_of(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return sorted((row["split"], row["step"], row["loss"]) for row in rows if "loss" in row)


def assert_same(one, other):
    assert lines_of(one) == lines_of(other)
    weights = [(x / "artifact" / "model.safetensors").read_bytes() for x in (one, other)]
    assert weights[0] == weights[1]


def test_a_signal_saves_after_its_step_and_the_same_call_continues(
    small_config, tmp_path, handlers
):
    setup = open_setup(config_of(small_config))
    train(setup, tmp_path / "whole")

    def ask(step, split, metrics):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as error:
        train(setup, tmp_path / "run", ask)
    assert str(error.value) == "interrupted at step 3 of 6, saved; the same command continues"
    assert error.value.status == 143 and error.value.saved
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert not (tmp_path / "run" / ".lock").exists()
    interruption.forget()
    train(setup, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_signal_outside_of_steps_ends_at_once_and_says_what_is_safe(
    small_config, tmp_path, handlers
):
    setup = open_setup(config_of(small_config, steps=2))

    def ask(step, split, metrics):
        if split == "test":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as error:
        train(setup, tmp_path / "run", ask)
    assert str(error.value) == (
        "interrupted; the last complete checkpoint is of step 2; the same command continues"
    )
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_arms_in_lockstep_all_save_and_continue(small_config, tmp_path, handlers, monkeypatch):
    setups = [open_setup(config_of(small_config, seed=seed)) for seed in (0, 1, 2)]

    def folders(name):
        return [tmp_path / name / str(number) for number in range(3)]

    # Otherwise the clock decides whether the arms are one program, which rounds in another way.
    monkeypatch.setattr(FusedStep, "_measure", lambda self, requests: True)
    run_arms(setups, folders("whole"))
    write = MetricsWriter.write

    def ask(self, step, split, metrics):
        write(self, step, split, metrics)
        if step == 3 and not signal_number():
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step 3 of 6, saved"):
        patch.setattr(MetricsWriter, "write", ask)
        run_arms(setups, folders("run"))
    for folder in folders("run"):
        assert (folder / "checkpoints" / "3").is_dir() and not (folder / ".lock").exists()
    interruption.forget()
    run_arms(setups, folders("run"))
    for one, other in zip(folders("run"), folders("whole"), strict=True):
        assert_same(one, other)


def test_a_signal_before_the_first_step_of_the_arms_saves_nothing(
    small_config, tmp_path, handlers, monkeypatch
):
    setups = [open_setup(config_of(small_config, seed=seed)) for seed in (0, 1)]
    with held():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as error:
            run_arms(setups, [tmp_path / "0", tmp_path / "1"])
        assert not error.value.saved
        interruption.forget()
    assert not (tmp_path / "1").exists() and not (tmp_path / "0" / ".lock").exists()


def test_a_held_signal_is_raised_at_the_end(handlers):
    with pytest.raises(Interrupted), held():
        with held():
            signal.raise_signal(signal.SIGTERM)
        assert signal_number() == signal.SIGTERM


@pytest.mark.parametrize("inside", ["time.sleep(60)", "hashlib.pbkdf2_hmac('md5',b'',b'',2**31-1)"])
def test_a_second_signal_ends_a_process_at_once(inside):
    code = (
        "import hashlib, time\nfrom finetune_jax import interruption\n"
        f"interruption.install()\nwith interruption.held():\n  print('go', flush=True)\n  {inside}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGTERM)
        # The same signal again, as a wrapper process may repeat it.
        process.send_signal(signal.SIGTERM)
        time.sleep(interruption._SAME_SIGNAL_SECONDS + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == (b"", b"")
        assert process.returncode == 143
    finally:
        process.kill()


def test_an_ignored_signal_stays_ignored_and_a_child_ends_with_its_parent():
    code = (
        "import os, signal, sys, time\nfrom finetune_jax import interruption\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "interruption.install()\nsignal.raise_signal(signal.SIGINT)\n"
        "if os.fork() == 0:\n"
        "  interruption.end_with_parent(os.getppid())\n"
        "  print('go', flush=True)\n  time.sleep(60)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    process.kill()
    assert process.stdout.read() == b""  # the child, which has the pipe too, has ended
    process.wait()


def test_a_process_that_goes_on_may_be_interrupted_again(handlers, monkeypatch):
    left = []
    monkeypatch.setattr(interruption, "leave", left.append)
    for _ in range(2):
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        time.sleep(0.6)
        interruption.forget()
    assert left == []


@pytest.mark.parametrize(
    "words, line",
    [
        (["python3", "-m", "finetune_jax.train", "--config=a b.py"],
         "python3 -m finetune_jax.train '--config=a b.py'"),
        (["python", "-m", "finetune_jax", "ablate", "--workdir=x"],
         "python -m finetune_jax ablate --workdir=x"),
        (["/opt/bin/python", "/opt/bin/finetune-jax", "train", "--scheme=last_k(1)"],
         "finetune-jax train '--scheme=last_k(1)'"),
        (["python", "-m", "finetune_jax.ablation.worker", "unit.json"], ""),
        (["python", "mine.py"], ""),
    ],
)  # fmt: skip
def test_the_last_line_after_a_signal_is_the_command_that_continues(monkeypatch, words, line):
    monkeypatch.setattr(sys, "orig_argv", words)
    text, status = ending(Interrupted(signal.SIGINT, "interrupted at step 3"))
    assert text == f"interrupted at step 3\n{line}".rstrip("\n") and status == 130
