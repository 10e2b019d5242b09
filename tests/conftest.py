"""Fixtures that several tests share, and eight virtual CPU devices in place of a small pod."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, and many tests compile the same programs: workers and
# subprocesses share one cache, which the process that made it removes.
_CACHE_OWNER = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _CACHE_OWNER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="finetune_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Folder of the digests of configs and tokenizers (finetune_jax.known), one for each process.
os.environ["FINETUNE_JAX_STATE"] = tempfile.mkdtemp(prefix="finetune_jax_state_")

from commands import QUICK_COMPILE  # noqa: E402

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILE}".strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=0, help="Seed of the fixture rng and of hypothesis."
    )


@pytest.hookimpl(tryfirst=True)  # set before hypothesis reads its seed
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(config.getoption("--seed"))


def pytest_collection_finish() -> None:
    # Objects of the imports stay alive for all tests, so the garbage collector need not visit them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_report_header(config: pytest.Config) -> str:
    option = config.option
    return f"seeds: --seed={option.seed} --hypothesis-seed={option.hypothesis_seed}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of one test, which depend on ``--seed`` and on the name of the test."""
    name = int.from_bytes(request.node.nodeid.encode())
    return np.random.default_rng([request.config.getoption("--seed"), name])


@pytest.fixture(scope="session")
def off_umask() -> Callable[[Path], list[str]]:
    """Returns a function that lists the files and folders below a path with another mode."""
    bits = os.umask(0)
    os.umask(bits)

    def check(path: Path) -> list[str]:
        return [
            f"{found}: {found.stat().st_mode:o}"
            for found in (path, *path.rglob("*"))
            if found.stat().st_mode & 0o777 != (0o777 if found.is_dir() else 0o666) & ~bits
        ]

    return check


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs() -> Iterator[None]:
    """Frees the compiled programs of a module; without this, a worker grows by gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["FINETUNE_JAX_STATE"], ignore_errors=True)
    if _CACHE_OWNER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 weight file in our own layout, random but for its names and shapes."""
    from finetune_jax.models import build, initialise
    from finetune_jax.pretrained import save_native

    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    model = build("resnet8_cifar", 10, image_size=32)
    save_native(path, initialise(model, 32, jax.random.key(7)), {})
    return path


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A config file of a run of a few seconds: digits, ResNet-8 at 16 pixels, 6 steps."""
    path = tmp_path_factory.mktemp("configs") / "small.py"
    path.write_text(
        f"""
from finetune_jax.config import default

def get_config():
    config = default()
    config.scheme = "last_k(1)"
    config.model.name = "resnet8_cifar"
    config.pretrained.path = {str(weights)!r}
    config.pretrained.new_head = True
    config.data.train = "train[:64]"
    config.data.validation = "validation[:40]"
    config.data.test = "test[:50]"
    config.data.image_size = 16
    config.train.batch_size = 16
    config.train.steps = 6
    config.eval.batch_size = 16
    config.checkpoint.every_steps = 1
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config
"""
    )
    return path


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Path:
    """The folder of a finished run of two steps, which must not be changed."""
    from finetune_jax.cli import load_config
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    config = load_config(str(small_config))
    config.train.steps = 2
    config.eval.probes = "knn(3) + few_shot(2)"
    config.checkpoint.every_steps = 2
    workdir = tmp_path_factory.mktemp("short") / "run"
    train(open_setup(config), workdir)
    return workdir


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SLURM of one node, which its commands find; skips with the reason where there is none."""
    script, folder = Path(__file__).parent / "slurm.sh", tmp_path / "slurm"
    process = subprocess.run(
        ["bash", script, "start", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        pytest.skip(process.stderr.strip().splitlines()[-1])
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield
    subprocess.run(["bash", script, "stop", folder], check=True)
