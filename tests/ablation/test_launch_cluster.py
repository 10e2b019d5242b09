"""SLURM and Ray run every unit to its end, and the launchers name the units that failed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_jax.ablation import worker
from finetune_jax.ablation.arm import make_arm
from finetune_jax.ablation.launch import completion, make_launcher
from finetune_jax.ablation.launch import ray as ray_launcher
from finetune_jax.ablation.launch import slurm as slurm_launcher
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="not run: needs submitit, see requirements-launch.txt",
)


def make_units(small_config, folder, long=()):
    """Eight units of one arm each; those numbered in `long` train for more steps."""
    base = load_config(str(small_config))
    base.eval.every_epochs = 1000.0
    units = []
    for number in range(8):
        changes = {"train.steps": 2000 if number in long else 3, "checkpoint.every_steps": 100}
        arm = make_arm(base, "row", changes, {"optimizer.learning_rate": 0.01}, seed=number)
        unit = folder / "units" / f"train_{number:04d}.json"
        unit.parent.mkdir(parents=True, exist_ok=True)
        write_json(unit, worker.train_unit([(folder / "runs" / str(number), arm.config)]))
        units.append(unit)
    return units


def broken_unit(folder):
    path = folder / "units" / "broken.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, worker.train_unit([(folder / "runs" / "broken", {"sede": 0})]))
    return path


def same(found, expected):
    """Asserts that the arms of two ablations have equal scores and bit-identical parameters."""
    for number in range(8):
        one, other = found / "runs" / str(number), expected / "runs" / str(number)
        results = [read_json(x / "trained.json") for x in (one, other)]
        assert results[0]["validation"] == results[1]["validation"]
        files = sorted(x.relative_to(one) for x in one.rglob("artifact/*.safetensors"))
        assert files
        for file in files:
            a, b = load_file(one / file), load_file(other / file)
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def expected(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    units = make_units(small_config, folder, long=(2, 5))
    make_launcher("local", {}).run(units, lambda: None)
    return folder


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slurm", {"minutes": 0}, "minutes: expected a whole number >= 1"),
        ("slurm", {"options": "account=a"}, "--name=value"),
        ("slurm", {"requeue": "maybe"}, "true or false"),
        ("ray", {"cpus": 0}, "cpus"),
        ("slrum", {}, "'slurm'"),
        ("slurm", {"partitoin": "a"}, "partitoin"),
    ],
)
def test_wrong_options_are_refused(name, options, message, monkeypatch):
    pytest.importorskip({"ray": "ray"}.get(name, "submitit"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UserError, match=message):
        make_launcher(name, options)


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_library_is_named_with_its_command(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.job_submission", None)
    with pytest.raises(UserError, match=rf"pip install 'finetune_jax\[{name}\]'"):
        make_launcher(name, {})


def test_sbatch_keeps_what_says_which_cluster_and_not_the_limits_of_this_job(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name, text in {
        "sbatch": f"env > {tmp_path}/seen; cp $1 {tmp_path}/script; echo Submitted batch job 5",
        "srun": "exit 0",
        "scancel": "exit 0",
        "squeue": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "7")
    units = [tmp_path / "units" / f"{name}.json" for name in "ab"]

    def stop():
        raise KeyboardInterrupt

    options = {"cpus": 3, "array": 5, "minutes": 9, "options": "--constraint=a100 --exclusive"}
    with pytest.raises(KeyboardInterrupt):
        make_launcher("slurm", options).run(units, stop)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "SLURM_CONF=/somewhere/slurm.conf" in seen and "SBATCH_ACCOUNT=lab" in seen
    assert not any(line.startswith("SLURM_MEM_PER_CPU") for line in seen)
    assert os.environ["SLURM_MEM_PER_CPU"] == "7"
    script = (tmp_path / "script").read_text()
    for flag in ("array=0-1%2", "time=9", "constraint=a100", "exclusive", "requeue"):
        assert f"#SBATCH --{flag}\n" in script
    assert script.count("--cpus-per-task=3") == 2  # srun does not inherit this value from sbatch


def running():
    lines = subprocess.run(["squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i"],
                           capture_output=True, text=True).stdout.split()  # fmt: skip
    return {line.partition("_")[2]: line for line in lines}


def worker_process(job):
    """Id of the process of a job in an array; None while the job has no process."""
    raw = subprocess.run(["squeue", "-h", "-j", job, "-o", "%A"], capture_output=True, text=True)
    lines = subprocess.run(
        ["scontrol", "listpids", f"{raw.stdout.strip()}.0"], capture_output=True, text=True
    ).stdout.splitlines()
    return next((int(x.split()[0]) for x in lines[1:] if x.split()[3] == "0"), None)


@pytest.mark.slow
@needs_submitit
def test_slurm_array_with_requeued_units_finishes_exactly(small_config, tmp_path, slurm, expected):
    units = make_units(small_config, tmp_path / "found", long=(2, 5))
    done = {}

    def poll():
        for number, job in running().items():
            saved = tmp_path / "found" / "runs" / number / "checkpoints"
            if number not in ("2", "5") or number in done or not any(saved.glob("[0-9]*")):
                continue
            if number == "2":  # requeued as by an administrator or by preemption
                subprocess.run(["scontrol", "requeue", job], check=True)
            # The signal that SLURM sends before the time limit.
            elif process := worker_process(job):
                os.kill(process, signal.SIGUSR2)
            else:
                continue
            done[number] = job

    make_launcher("slurm", {"minutes": 10, "cpus": 1, "array": 2}).run(units, poll)
    assert done.keys() == {"2", "5"}
    for job in done.values():
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
        assert "Restarts=1" in shown.stdout
    for number in done:
        logs = (tmp_path / "found" / "units" / "slurm").glob(f"*_{number}_0_log.*")
        assert any("resuming from step" in log.read_text() for log in logs)
    same(tmp_path / "found", expected)


@pytest.mark.slow
@needs_submitit
def test_slurm_says_which_units_failed_and_spares_the_others(
    small_config, tmp_path, slurm, monkeypatch
):
    monkeypatch.setattr(completion, "SHARED_FILES_DELAY", 3.0)
    units = [broken_unit(tmp_path), *make_units(small_config, tmp_path, long=(0, 1))[:3]]
    cancelled = []

    def poll():
        for number, job in running().items():
            if number == "1" and not cancelled:
                subprocess.run(["scancel", job], check=True)
                cancelled.append(job)

    with pytest.raises(UserError) as caught:
        make_launcher("slurm", {"minutes": 10, "cpus": 1}).run(units, poll)
    assert "broken.json" in str(caught.value) and "sede" in str(caught.value)
    assert units[1].name in str(caught.value) and "CANCELLED" in str(caught.value)
    assert all(worker.finished(unit) for unit in units[2:])

    def stop():
        if running():
            raise KeyboardInterrupt


@pytest.mark.slow
@needs_submitit
def test_slurm_jobs_that_a_killed_launcher_left_end_before_new_ones_start(
    small_config, tmp_path, slurm, monkeypatch
):
    units = make_units(small_config, tmp_path, long=(0, 1))
    owners = []

    def stop():
        if jobs := running():
            owners.extend({job.partition("_")[0] for job in jobs.values()})
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # As if the launcher were killed before it could cancel its jobs.
        patch.setattr(slurm_launcher, "_cancel", lambda name: None)
        make_launcher("slurm", {"minutes": 10}).run(units[:2], stop)
    assert running()
    seen = []
    make_launcher("slurm", {"minutes": 10}).run(
        units[2:4], lambda: seen.extend(job.partition("_")[0] for job in running().values())
    )
    assert all(map(worker.finished, units[2:4])) and not any(map(worker.finished, units[:2]))
    assert seen and not set(seen) & set(owners)


@pytest.mark.slow
def test_ray_jobs_finish_exactly(small_config, tmp_path, expected):
    pytest.importorskip("ray")
    units = make_units(small_config, tmp_path, long=(2, 5))
    failing = broken_unit(tmp_path)
    polls = []
    with pytest.raises(UserError) as caught:
        make_launcher("ray", {}).run([failing, *units], lambda: polls.append(1))
    assert "broken.json" in str(caught.value) and "sede" in str(caught.value)
    assert polls
    same(tmp_path, expected)


@pytest.fixture
def cluster():
    """(address, client) of a Ray cluster that the launcher did not start."""
    ray = pytest.importorskip("ray")
    from ray.job_submission import JobSubmissionClient

    context = ray.init(address="local", include_dashboard=True, log_to_driver=False)
    address = f"http://{context.dashboard_url}"
    yield address, JobSubmissionClient(address)
    ray.shutdown()


def processes(*words):
    lines = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True
    ).stdout
    return [int(x.split()[0]) for x in lines.splitlines() if all(word in x for word in words)]


@pytest.mark.slow
def test_ray_jobs_that_a_killed_launcher_left_end_before_new_ones_start(
    small_config, tmp_path, cluster, monkeypatch
):
    address, client = cluster
    # The argument has priority over the environment.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    units = make_units(small_config, tmp_path, long=(0, 1))

    def stop():
        if any(job.status == "RUNNING" for job in client.list_jobs()):
            time.sleep(3)
            raise KeyboardInterrupt

    launcher = make_launcher("ray", {"address": address})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ray_launcher, "_stop_all", lambda client, folder: None)
        launcher.run(units[:2], stop)
    assert processes("ablation.worker", str(units[0]))
    others = []
    launcher.run(units[2:4], lambda: others.extend(processes("ablation.worker", str(units[0]))))
    assert not others and all(map(worker.finished, units[2:4]))
    assert not any(map(worker.finished, units[:2]))
    with pytest.raises(KeyboardInterrupt):
        launcher.run(units[:2], stop)
    assert not processes("ablation.worker", str(tmp_path))


@pytest.mark.slow
def test_a_ray_unit_whose_node_is_lost_starts_again(small_config, tmp_path, cluster, expected):
    address, client = cluster
    units = make_units(small_config, tmp_path, long=(2, 5))
    killed, alive = [], []

    def poll():
        saved = tmp_path / "runs" / "2" / "checkpoints"
        if killed:
            alive.append(len(processes("python", "ablation.worker", str(units[2]), "-m")))
            return
        if any(saved.glob("[0-9]*")):
            job = next(x for x in client.list_jobs() if str(units[2]) in x.entrypoint)
            worker_id = processes("ablation.worker", str(units[2]))[0]
            parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(worker_id)],
                                    capture_output=True, text=True).stdout  # fmt: skip
            title = subprocess.run(["ps", "-ww", "-o", "args=", "-p", parent.strip()],
                                   capture_output=True, text=True).stdout  # fmt: skip
            assert "JobSupervisor" in title
            os.kill(int(parent), signal.SIGKILL)
            killed.append(job.submission_id)

    make_launcher("ray", {"address": address}).run(units, poll)
    assert killed and max(alive) == 1  # at most one job of each unit
    assert sum(str(units[2]) in x.entrypoint for x in client.list_jobs()) == 2
    same(tmp_path, expected)
