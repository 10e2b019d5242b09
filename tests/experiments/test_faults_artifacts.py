"""A short campaign: damaged and edited artifacts are never opened as something else."""

import numpy as np
import pytest

from experiments.faults import artifacts
from experiments.faults.campaign import IDENTICAL, REFUSED
from finetune_jax.models import MODELS

pytest.importorskip("tokenizers", reason="not run: needs the package tokenizers")


@pytest.mark.slow
def test_twenty_artifacts(tmp_path):
    try:
        trial = artifacts.make_trial(tmp_path)
        outcomes = [trial(np.random.default_rng([1, number])) for number in range(20)]
    finally:
        MODELS.pop("campaign_text", None)
    assert {kind for kind, _ in outcomes} <= {IDENTICAL, REFUSED, artifacts.VALID}, outcomes
    assert sum(kind == REFUSED for kind, _ in outcomes) >= 15
