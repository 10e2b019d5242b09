"""The verdict of the long test over its lines."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from experiments.faults.soak import measure, verdict
from finetune_jax.training.checkpoints import Checkpoints


def rows(slope, files=6, warm_up=100.0):
    return [
        {
            "minute": minute,
            "rss_mib": 500.0,
            "own_mib": 300 + slope * minute + (warm_up if minute < 5 else 0),
            "threads": 20 + minute % 2,
            "files": 6 if minute < 20 else files,
        }
        for minute in range(30)
    ]


@pytest.mark.parametrize(
    ("lines", "good"), [(rows(0.5), True), (rows(1.5), False), (rows(0.0, files=7), False)]
)
def test_memory_threads_and_files_must_be_flat_after_the_warm_up(lines, good):
    found = verdict(lines, 5)
    assert found["good"] == good
    assert found["mib_per_minute"]["rss_mib"] == pytest.approx(0, abs=1e-6)


def test_the_process_is_measured():
    found = measure()
    assert 10 < found["own_mib"] < found["rss_mib"] + 10_000
    assert found["threads"] >= found["python_threads"] >= 1 and found["files"] >= 3


def test_a_checkpoint_does_not_read_the_metrics_of_tensorstore(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tensorstore, "experimental_collect_matching_metrics", lambda *_: pytest.fail("was read")
    )
    assert Checkpoints  # its module keeps Orbax from reading them
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"a": np.ones(2)})
