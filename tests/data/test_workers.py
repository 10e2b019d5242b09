"""Worker processes and hosts change neither the examples of a batch nor their order."""

import numpy as np
import pytest

from finetune_jax.config import default
from finetune_jax.data.batches import Encoder, TrainBatches, cached, eval_batches
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.sources import open_source
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.tasks import Classification

pytest.importorskip("grain")

COUNT = 37


class Numbered:
    """Examples made when they are read; the numbers in `broken` fail."""

    def __init__(self, broken=None):
        self.broken = broken or {}

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index in self.broken:
            raise self.broken[index]
        return {"label": np.int32(index)}


def plain(example):
    return example


def stream(start, stop, workers=0, host=0, hosts=1, examples=None):
    rows = np.arange(8).reshape(hosts, -1)[host]
    batches = TrainBatches(examples or Numbered(), plain, 8, 3, rows, workers)
    return [batch["label"].tolist() for batch in batches.iterate(start, stop)]


def joined(start, stop, hosts, workers=0):
    parts = [stream(start, stop, workers, host, hosts) for host in range(hosts)]
    return [sum(slices, []) for slices in zip(*parts, strict=True)]


EXPECTED = stream(0, 14)  # a little more than three epochs


def test_an_epoch_has_every_example_once():
    order = sum(EXPECTED, [])
    for epoch in range(3):
        assert sorted(order[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_run_resumed_in_mid_epoch_on_other_hosts_goes_on_exactly(hosts):
    before = joined(0, 7, 2)  # step 7 is in the second epoch
    assert before + joined(7, 14, hosts) == EXPECTED


def test_two_workers_read_the_same_from_any_start_and_on_any_host():
    assert stream(3, 8, workers=2, host=1, hosts=4) == [batch[2:4] for batch in EXPECTED[3:8]]


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_eight_workers_read_the_same(hosts):
    assert joined(0, 14, hosts, workers=8) == EXPECTED


@pytest.mark.slow
def test_evaluation_with_workers_sees_every_example_once_in_order():
    seen = []
    for batch in eval_batches(Numbered(), plain, 16, workers=2):
        assert batch["label"].shape == batch["mask"].shape == (16,)
        seen += batch["label"][batch["mask"] > 0].tolist()
    assert seen == list(range(COUNT))


@pytest.mark.slow
def test_an_error_in_a_worker_surfaces_where_it_belongs_and_says_which_example():
    bad = EXPECTED[1][2]
    examples = Numbered({bad: OSError("disk")})
    batches = TrainBatches(examples, plain, 8, 3, workers=1).iterate(0, 5)
    assert next(batches)["label"].tolist() == EXPECTED[0]
    with pytest.raises(OSError, match="disk") as error:
        next(batches)
    assert f"example {bad} " in error.value.__notes__[0]
    with pytest.raises(UserError, match=f"example {bad}: no such word"):
        stream(0, 2, examples=Numbered({bad: UserError("no such word")}))


@pytest.mark.slow
def test_pictures_decoded_by_workers_are_the_same_pixels_and_bad_ones_are_named(tmp_path):
    from PIL import Image

    for i in range(12):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 7, 3), 20 * i, np.uint8)).save(path)
    examples = open_source(f"folder:{tmp_path}").read("train")
    encode = Encoder((ImagePreprocess(8, crop=0), Classification(("a", "b"))))
    alone, shared = cached(examples, encode, 2**20), cached(examples, encode, 2**20, workers=2)
    for name, values in alone.arrays.items():
        np.testing.assert_array_equal(values, shared.arrays[name])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="11.png: damaged"):
        list(TrainBatches(examples, encode, 12, 0, workers=1).iterate(0, 1))


def test_what_an_experiment_encodes_with_goes_to_a_process():
    import cloudpickle

    setup = open_setup(default())
    again = cloudpickle.loads(cloudpickle.dumps(setup.encode))
    example = setup.source.read("test[:1]")[0]
    for name, value in setup.encode(example).items():
        np.testing.assert_array_equal(again(example)[name], value)
