"""No damage of a ledger changes a table: it is repaired, or refused by its line."""

import pytest

from experiments.faults import campaign, ledgers


@pytest.mark.slow
def test_no_damaged_ledger_is_believed():
    report = campaign.run_campaign("ledgers", ledgers.make_trial(), trials=20, seed=1)
    assert report["bad"] == []
    assert report["counts"][campaign.REFUSED] and report["counts"][campaign.IDENTICAL]
