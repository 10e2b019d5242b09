"""The campaigns of faults in checkpoints and in prefix caches, with a few trials."""

import pytest

from experiments.faults import checkpoints, prefix_cache
from experiments.faults.campaign import run_campaign


@pytest.mark.slow
@pytest.mark.parametrize("campaign", [checkpoints, prefix_cache])
def test_no_trial_ends_wrong_or_in_a_traceback(tmp_path, campaign):
    report = run_campaign("short", campaign.make_trial(tmp_path), 8, 1)
    assert report["bad"] == []
    assert report["counts"]["identical"] >= 6
