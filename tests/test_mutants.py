"""Every mutant can be made: its text occurs once in its file, and its tests exist."""

import pytest
from commands import ROOT
from mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.file)
def test_a_mutant_can_be_made(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant
    assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant
