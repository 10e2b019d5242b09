"""The output of an ablation while it runs."""

import io
import re
import sys

from finetune_jax.progress import say
from finetune_jax.reporting.live import Live

RECORD = {"point": {"optimizer.learning_rate": 0.1}, "seed": 3, "validation": {"accuracy": 0.875}}


def test_without_a_terminal_every_arm_is_a_line_and_runs_are_silent(capsys):
    with Live(["head", "full"]) as live:
        live.expect("train", 2)
        say("a run's own words")
        live.ended("head", RECORD, "accuracy")
        live.ended("full", {**RECORD, "error": "the loss is nan"}, "accuracy")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for part in ("train 1/2", "head", "accuracy 87.5 %", "learning_rate=0.1", "seed 3", "left"):
        assert part in lines[0]
    assert "train 2/2" in lines[1] and "failed: the loss is nan" in lines[1]


def test_a_terminal_has_a_table_with_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Live(["head", "full"]) as live:
        live.expect("train", 2)
        live.ended("head", RECORD, "accuracy")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for part in ("arms ended", "head", "87.5 %", "learning_rate=0.1", "train 1/2", "━"):
        assert part in shown
