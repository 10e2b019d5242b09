"""Every family × origin computes what its reference implementation computes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
pytest.importorskip("transformers", reason="not run: needs requirements-reference.txt")

from all_cases import CASES  # noqa: E402
from harness import assert_within, check  # noqa: E402


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_equal_the_reference(case):
    assert_within(check(case))
