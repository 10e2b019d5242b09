"""Runs commands as a user does, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Programs run once or a few times in tests, so time that LLVM spends on making them fast is lost.
# Programs of the tests run for milliseconds and compile for seconds.
QUICK_COMPILE = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
ONE_DEVICE = f"--xla_force_host_platform_device_count=1 {QUICK_COMPILE}"


def run_command(name: str, *arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs ``python -m finetune_jax.NAME`` as a user does, and captures what it prints."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}",
    }
    return subprocess.run(
        [sys.executable, "-m", f"finetune_jax.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_in(folder: Path, command: list[str]) -> str:
    """Runs a command of a page in a folder; returns what it prints, and fails if it fails."""
    if command[0] == "finetune-jax":
        command = ["python", "-m", f"finetune_jax.{command[1]}", *command[2:]]
    assert command[0] == "python", command
    process = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, (command, process.stderr[-3000:])
    return process.stdout + process.stderr
