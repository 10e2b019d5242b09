"""The verdict of the long test over its lines."""

import sys
from types import SimpleNamespace

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from experiments.faults.soak import measure, verdict
from finetune_jax.training import orbax_memory
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


def test_a_checkpoint_asks_for_the_address_of_its_folder_and_not_of_each_leaf(
    tmp_path, monkeypatch
):
    assert Checkpoints  # its module keeps Orbax from asking for each leaf
    asked = []

    def counted(spec):
        asked.append(spec)
        return tensorstore.KvStore.Spec(spec)

    orbax = sys.modules["orbax.checkpoint._src.serialization.tensorstore_utils"]
    own = SimpleNamespace(**{k: getattr(tensorstore, k) for k in dir(tensorstore)})
    own.KvStore = SimpleNamespace(Spec=counted, open=tensorstore.KvStore.open)
    monkeypatch.setattr(orbax, "ts", own)
    leaves = {str(i): np.full(2, i) for i in range(40)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", leaves)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "checkpoint")
    assert 0 < len(asked) < 20
    assert all(np.array_equal(restored[key], value) for key, value in leaves.items())


def test_the_address_of_a_leaf_is_that_of_orbax():
    orbax = sys.modules["orbax.checkpoint._src.serialization.tensorstore_utils"]
    wrapped = orbax._build_ocdbt_kvstore_tspec
    for name in (None, "a", "b"):
        assert wrapped("/folder", name) == wrapped.__wrapped__("/folder", name)
    first = wrapped("/folder", "a")
    first["base"]["path"] = "changed"
    assert wrapped("/folder", "a") == wrapped.__wrapped__("/folder", "a")
    orbax_memory.apply()  # a second call changes nothing
    assert orbax._build_ocdbt_kvstore_tspec is wrapped
