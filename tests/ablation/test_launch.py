"""Local processes run every unit to its end, and name the units that failed."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from finetune_jax import interruption
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.launch import local, make_launcher, slurm
from finetune_jax.ablation.study import Study
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.interruption import Interrupted


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lokal", {}, "'local'"),
        ("local", {"processes": 0}, ">= 1"),
        ("local", {"procesess": 2}, "procesess"),
    ],
)
def test_wrong_launchers_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        make_launcher(name, options)


def test_processes_run_at_most_so_many_at_once_and_a_failure_stops_no_other(tmp_path, monkeypatch):
    script = "import sys, time, pathlib; u = pathlib.Path(sys.argv[1]); time.sleep(0.4); "
    script += "print('what went wrong') or sys.exit(3) if u.stem == 'b' else u.write_text('done')"
    running, most = [], [0]

    def start(unit):
        with unit.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(["python3", "-c", script, unit], stdout=log)
        running.append(process)
        most[0] = max(most[0], sum(p.poll() is None for p in running))
        return process

    monkeypatch.setattr(local, "_start", start)
    units = [tmp_path / f"{name}.json" for name in "abcd"]
    polled = []
    with pytest.raises(UserError, match=r"b.json ended with status 3: what went wrong"):
        make_launcher("local", {"processes": 2}).run(units, lambda: polled.append(1))
    assert most[0] == 2 and polled
    assert [unit.exists() for unit in units] == [True, False, True, True]


def test_processes_are_ended_with_the_ablation(tmp_path, monkeypatch):
    started = []

    def start(unit):
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        make_launcher("local", {"processes": 2}).run([tmp_path / "a", tmp_path / "b"], interrupt)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def conduct(small_config, folder, launcher, unit_arms=1):
    """Eight arms: two schemes, two rates, two seeds; none scored."""
    config = load_config(str(small_config))
    config.train.steps = 3
    config.data.test = ""
    study = Study(
        rows=over("scheme", ["linear_probe", "last_k(1)"]),
        tune=over("optimizer.learning_rate", [0.01, 0.1]),
        search="grid(extend=0)",
        seeds=(0, 1),
        tune_seeds=(0, 1),
    )
    Conductor(study, config, folder, launcher, unit_arms).run({})
    rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {(row["key"], row["what"]): row["validation"] for row in rows}


def alike(found, expected):
    assert found.keys() == expected.keys() and len(found) == 8
    for key, scores in expected.items():
        assert found[key] == pytest.approx(scores, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def expected(small_config, tmp_path_factory):
    return conduct(small_config, tmp_path_factory.mktemp("here"), make_launcher("local", {}), 0)


@pytest.mark.slow
def test_local_processes_find_what_one_process_finds(small_config, tmp_path, expected):
    launcher = make_launcher("local", {"processes": 2})
    alike(conduct(small_config, tmp_path, launcher, 4), expected)


@pytest.mark.parametrize(
    ("number", "called", "status"),
    [(signal.SIGUSR2, [signal.SIGUSR2], 7), (signal.SIGTERM, [], 143)],
)
def test_a_slurm_unit_saves_before_it_is_requeued(number, called, status, monkeypatch, capsys):
    """The handlers of submitit requeue the job at the signal before the time limit."""
    seen = []

    def requeue(number, frame):
        seen.append(number)
        raise SystemExit(7)

    def unit(path):
        with interruption.held():
            signal.raise_signal(number)
            assert not seen and interruption.signal_number() == number
            raise Interrupted(number, "interrupted at step 3 of 6, saved", saved=True)

    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    monkeypatch.setattr(interruption, "_SIGNALS", interruption._Signals())
    monkeypatch.setattr(slurm, "run_unit", unit)
    monkeypatch.setattr(slurm, "_LONGEST_GRACE", 0)
    signal.signal(signal.SIGUSR2, requeue)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(SystemExit) as end:
            slurm.Resumable()(Path("unit.json"))
        assert end.value.code == status and seen == called
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        os.close(signal.set_wakeup_fd(-1))
        for n, handler in before.items():
            signal.signal(n, handler)
    assert "saved" in capsys.readouterr().err
