"""Two processes that train together: the same run as one process on as many devices."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import QUICK_COMPILE, ROOT
from PIL import Image

from finetune_jax import hosts
from finetune_jax.errors import UserError
from finetune_jax.gloo_lines import copy_lines
from finetune_jax.models import build, initialise
from finetune_jax.pretrained import open_weights, save_native
from finetune_jax.training.metrics_writer import TIMES

VIT = (
    "--config.model.name=vit_ti16",
    "--config.data.image_size=32",
    "--config.pretrained.path={vit}",
    "--config.pretrained.new_head=True",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=0.001",
)
# At a larger rate, differences by rounding grow from step to step until two runs diverge.
SLOWLY = "--config.optimizer.learning_rate=0.0005"
# A config for each kind of work that all hosts must do in the same way.
RUNS = [
    pytest.param(
        ("--config.scheme=last_k(1)",), id="behind_a_cached_prefix", marks=pytest.mark.slow
    ),
    pytest.param(
        (*VIT, "--config.mesh.fsdp=4", "--config.train.accumulate=2", "--config.scheme=full",
         "--config.optimizer.ema_decay=0.5", "--config.artifact.select=best"),
        id="leaves_cut_over_hosts", marks=pytest.mark.slow,
    ),
    pytest.param(
        ("--config.scheme=linear_probe + phase(solve='ridge') >> full + phase(steps=6)",
         "--config.batch_norm=reestimate", "--config.eval.probes=knn(3) + few_shot(2)",
         "--config.data.augment=flip", SLOWLY),
        id="a_solved_head", marks=pytest.mark.slow,
    ),
    pytest.param(
        (*VIT, "--config.scheme=lora(rank=2) + head", "--config.artifact.merge=True",
         "--config.artifact.contents=delta", "--config.mesh.fsdp=4"),
        id="merged_deltas", marks=pytest.mark.slow,
    ),
    pytest.param(
        ("--config.scheme=last_k(1)", "--config.prefix_cache.dir={cache}"),
        id="a_cached_prefix_in_a_folder", marks=pytest.mark.slow,
    ),
    pytest.param(
        ("--config.scheme=auto_rgn", "--config.data.cache_bytes=0", "--config.data.workers=1"),
        id="measured_rates_and_workers", marks=pytest.mark.slow,
    ),
]  # fmt: skip


# Lines that Gloo, absl and XLA print, such as "I1128 08:05:01.123456 12345 file.cc:7] text".
NOISE = re.compile(r"^\[Gloo\]|^[IWEF]\d{4} |^(INFO|WARNING):|orbax", re.M)


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def start(count, config, workdir, *overrides, second=(), folders=(ROOT, ROOT)):
    """Starts one process of four devices, or two of two; the second may get other arguments.

    Each process is started in its own folder of `folders`, as on a machine of its own.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "finetune_jax.train", f"--config={config}"]
    command += [f"--workdir={workdir}", *overrides]
    others = [[f"--distributed=localhost:{port},{count},{number}"] for number in range(count)]
    return [
        subprocess.Popen(
            command + (other if count > 1 else []) + list(second if number else ()),
            cwd=folders[number],
            env={**environment(4 // count), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, other in enumerate(others)
    ]


def ended(processes):
    """Exit status and output of each process.

    Processes that all end without an error have printed lines of this package alone.
    """
    try:
        told = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for output, errors in told if not any(p.returncode for p in processes) else ():
        assert output == ""
        assert not NOISE.search(errors), errors
    return [(process.returncode, told[i][1]) for i, process in enumerate(processes)]


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_run(one, other):
    assert [(r["step"], r["split"]) for r in rows(one)] == [
        (r["step"], r["split"]) for r in rows(other)
    ]
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"split", "grad_norm", *TIMES}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4, nan_ok=True), (a, b)
    results = [json.loads((w / "result.json").read_text()) for w in (one, other)]
    assert results[0]["audit"] == results[1]["audit"]
    assert results[0]["test"]["n_scored"] == results[1]["test"]["n_scored"] == 50
    with (
        open_weights(one / "artifact" / "model.safetensors") as a,
        open_weights(other / "artifact" / "model.safetensors") as b,
    ):
        assert sorted(a.names()) == sorted(b.names())
        for name in a.names():
            np.testing.assert_allclose(a.read(name), b.read(name), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory):
    """A file of ViT-Ti/16 for 32 pixels, random but for its names and shapes."""
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    model = build("vit_ti16", 10, image_size=32)
    save_native(path, initialise(model, 32, jax.random.key(7)), {})
    return path


@pytest.mark.parametrize("overrides", RUNS)
def test_two_hosts_train_the_run_of_one(overrides, small_config, vit_weights, tmp_path):
    places = {"{vit}": str(vit_weights), "{cache}": str(tmp_path / "cache")}
    for name, path in places.items():
        overrides = [text.replace(name, path) for text in overrides]
    (primary, told), (other, silent) = ended(start(2, small_config, tmp_path / "two", *overrides))
    assert (primary, other) == (0, 0), told + silent
    assert "bit-identical" in told and "step 6" in told
    # The other process prints only that it has connected; the primary prints the rest.
    assert "finetune_jax.train in" in silent
    assert "step 6" not in silent and "weights" not in silent
    if (tmp_path / "cache").exists():
        assert "written to" in told and len([*(tmp_path / "cache").iterdir()]) == 2
        shutil.rmtree(tmp_path / "cache")
    ((status, alone),) = ended(start(1, small_config, tmp_path / "one", *overrides))
    assert status == 0, alone
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_run_goes_on_with_another_number_of_hosts(count, small_config, tmp_path):
    overrides = SLOWLY, "--config.train.steps=40"
    ((status, told),) = ended(start(1, small_config, tmp_path / "whole", *overrides))
    assert status == 0, told
    workdir = tmp_path / "killed"
    processes = start(count, small_config, workdir, *overrides)
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (workdir / "result.json").exists()
    (status, told), *_ = ended(start(3 - count, small_config, workdir, *overrides))
    assert status == 0, told
    assert "resuming from step" in told
    assert_same_run(workdir, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_all_end_when_one_host_ends_and_the_same_command_continues(
    how, number, small_config, tmp_path
):
    """A killed host is named by the other; a host that is told to end saves with the other."""
    overrides = SLOWLY, "--config.train.steps=40"
    ((status, told),) = ended(start(1, small_config, tmp_path / "whole", *overrides))
    assert status == 0, told
    workdir = tmp_path / "two"
    processes = start(2, small_config, workdir, *overrides)
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    processes[number].send_signal(how)
    results = ended(processes)
    for _, told in results:
        assert "Traceback" not in told and "Fatal" not in told, told
    if how == signal.SIGKILL:
        status, told = results[1 - number]
        assert status == 1
        assert f"error: process {number} of this run (0 to 1) has ended" in told
    else:
        assert [status for status, _ in results] == [143, 143]
        assert "the same command continues" in results[0][1]
    assert not (workdir / "result.json").exists()
    results = ended(start(2, small_config, workdir, *overrides))
    assert [status for status, _ in results] == [0, 0], results
    assert "resuming from step" in results[0][1]
    assert_same_run(workdir, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("--config.seed=1", "the 2 processes do not have the same config"),
        ("--config.data.train=train[:48]", "the same config, examples"),
        ("--workdir={other}", "not the same folder for all processes"),
    ],
)
def test_hosts_with_other_arguments_are_refused(second, message, small_config, tmp_path):
    second = second.format(other=tmp_path / "other")
    results = ended(start(2, small_config, tmp_path / "run", second=[second]))
    for status, told in results:
        assert status == 2 and message in told
    assert not any((tmp_path / name / "config.json").exists() for name in ("run", "other"))


@pytest.mark.slow
def test_two_hosts_read_one_hugging_face_dataset_each_from_its_own_cache(small_config, tmp_path):
    """Folders and times of the caches differ; other content is refused before a file is written."""
    datasets = pytest.importorskip("datasets", reason="the datasets library is an extra")

    def write(folder, seed):
        rng = np.random.default_rng(seed)
        names = datasets.ClassLabel(names=["a", "b"])
        features = datasets.Features({"image": datasets.Image(), "label": names})
        splits = {}
        for split, count in {"train": 40, "validation": 30, "test": 50}.items():
            pixels = rng.integers(0, 255, (count, 8, 8, 3), np.uint8)
            rows = {"image": list(map(Image.fromarray, pixels)), "label": [0, 1] * (count // 2)}
            splits[split] = datasets.Dataset.from_dict(rows, features=features)
        datasets.DatasetDict(splits).save_to_disk(folder / "saved")
        return folder

    first, copied, other = (
        write(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    whole = ("--config.data.source=hf:saved", "--config.data.train=train",
             "--config.data.validation=validation", "--config.data.test=test",
             "--config.scheme=full", SLOWLY)  # fmt: skip

    def trained(count, name, folders):
        return ended(start(count, small_config, tmp_path / name, *whole, folders=folders))

    results = trained(2, "two", [first, copied])
    assert [status for status, _ in results] == [0, 0], results
    ((status, alone),) = trained(1, "one", [first])
    assert status == 0, alone
    assert_same_run(tmp_path / "two", tmp_path / "one")
    results = trained(2, "refused", [first, other])
    for status, told in results:
        assert status == 2 and "the 2 processes do not have the same" in told, told
    assert not (tmp_path / "refused" / "config.json").exists()


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others_soon(small_config, tmp_path):
    for number in range(40):
        folder = tmp_path / "pictures" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    damaged = folder / "39.png"
    damaged.write_bytes(damaged.read_bytes()[:45])
    overrides = (
        f"--config.data.source=folder:{tmp_path / 'pictures'}", "--config.data.train=train",
        "--config.data.validation=", "--config.data.test=", "--config.data.cache_bytes=0",
        "--config.scheme=full",
    )  # fmt: skip
    began = time.monotonic()
    results = ended(start(2, small_config, tmp_path / "run", *overrides))
    assert time.monotonic() - began < 60
    assert all(status for status, _ in results)
    assert any(f"error: {damaged}" in told for _, told in results)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_hosts_of_a_slurm_step_find_each_other(small_config, slurm, tmp_path):
    """``auto`` under a real srun."""
    command = ["srun", "-n2", "-c1", sys.executable, "-m", "finetune_jax.train"]
    command += [f"--config={small_config}", f"--workdir={tmp_path / 'two'}", "--distributed=auto"]
    process = subprocess.run(
        command, cwd=ROOT, env=environment(2), capture_output=True, text=True, timeout=280
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("bit-identical") == 1
    ((status, alone),) = ended(start(1, small_config, tmp_path / "one"))
    assert status == 0, alone
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    "how", ["here", "localhost:12", "localhost:12,2,2", "localhost,2,0", "localhost:12,two,0"]
)
def test_hosts_that_are_written_otherwise_are_refused(how):
    with pytest.raises(UserError, match="expected 'auto' or HOST:PORT,COUNT,NUMBER"):
        hosts.connect(how)


def test_a_host_of_a_slurm_step_that_does_not_come_is_named(monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    step = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": 0, "LOCALID": 0}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
    with pytest.raises(UserError, match=f"process 1 of 2 .* did not come to localhost:{port} wit"):
        hosts.connect("auto", seconds=0.3)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({}, "found no job of a TPU pod, SLURM"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, r"pip install 'jax\[k8s\]'"),
    ],
)
def test_auto_says_what_lacks(monkeypatch, variables, message):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(UserError, match=message):
        hosts.connect("auto")


def test_lines_of_gloo_are_left_out_and_other_lines_are_kept(tmp_path):
    said = b"%d peer ranks. Expected number of connected peer ranks is : 1\n"
    interleaved = (
        b"[Gloo] Rank 0 is connected to [Gloo] Rank 0 is connected to " + said % 1 + said % 1
    )
    text = b"[Gloo] Rank 0 is connected to " + said % 1 + interleaved + b" " + said % 12
    text += b"2 is connected to 3" + b" " + said % 3 + b"1 is connected to 1\n"
    text += b"other\nconnected 3\n[Gloo] what\n1 peer\nno end"
    with (tmp_path / "out").open("wb") as target:
        copy_lines(io.BytesIO(text), target.fileno())
    assert (tmp_path / "out").read_bytes() == b"other\nconnected 3\n[Gloo] what\n1 peer\nno end"
