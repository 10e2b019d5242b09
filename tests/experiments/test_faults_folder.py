"""Short versions of the campaigns about folders: full disks, signals and pairs of commands."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.faults import campaign, full_disk, pairs, signals


def trials(trial, count):
    return [trial(np.random.default_rng([0, number])) for number in range(count)]


def bad(found):
    return [one for one in found if one[0] != campaign.IDENTICAL]


# TensorStore reports writes that it gave up to an event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_run_recovers_from_a_limit_on_its_files(tmp_path):
    found = trials(full_disk.make_trial(tmp_path, ("file size",)), 2)
    assert not bad(found)
    assert all("File too large; " in what and "the same command continues" in what
               for _, what in found)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_recovers_from_a_full_disk(tmp_path):
    if not full_disk.can_mount(tmp_path):
        pytest.skip("needs the right to mount a tmpfs")
    found = trials(full_disk.make_trial(tmp_path, ("space", "inodes", "removed")), 6)
    assert not bad(found)


@pytest.mark.slow
def test_a_run_continues_after_a_signal(tmp_path):
    assert not bad(trials(signals.make_trial(tmp_path), 5))


@pytest.mark.slow
def test_one_of_two_commands_owns_a_folder(tmp_path):
    assert not bad(trials(pairs.make_trial(tmp_path, (("train", "other"),)), 2))
