"""Rules say which weight gets which format; a rule without effect is refused."""

import pytest

from finetune_jax.errors import UserError
from finetune_jax.quantization import formats_by_leaf, parse_rules

WEIGHTS = ["conv1/kernel", "block_0/mlp/in/kernel", "block_1/mlp/in/kernel", "head/kernel"]


def formats(text):
    found = formats_by_leaf(parse_rules(text, "--how"), WEIGHTS, "--how")
    return {path: str(format_) for path, format_ in found.items()}


def test_a_format_alone_is_for_all_weights():
    assert formats("int8") == dict.fromkeys(WEIGHTS, "int8")
    assert formats("int4(tile=32)") == dict.fromkeys(WEIGHTS, "int4(tile=32)")


def test_the_first_rule_that_matches_a_stage_or_a_path_decides():
    found = formats("head=keep, block_.*=int4(tile=32), conv1/kernel=fp8")
    assert found == {
        "block_0/mlp/in/kernel": "int4(tile=32)",
        "block_1/mlp/in/kernel": "int4(tile=32)",
        "conv1/kernel": "fp8",
    }


def test_patterns_may_have_commas_parentheses_and_equals_signs():
    blocks = dict.fromkeys(WEIGHTS[1:3], "int4(tile=32)")
    assert formats("block_[0-9]{1,2}=int4(tile=32)") == blocks
    assert formats("(block_0|block_1)=int4(tile=32)") == blocks
    assert formats("(?=block).*=int4(tile=32), head=keep") == blocks


@pytest.mark.parametrize(
    "text, message",
    [
        ("blok_0=int8", "no stage and no weight has this name.*Did you mean 'block_0'"),
        (".*=int8, head=keep", "earlier rules name all of its weights"),
        ("block_[=int8", "no regular expression"),
        ("head=int5", "Did you mean"),
        ("", "expected"),
        ("head=int8=", "expected"),
        ("head: int8", "or PATTERN=FORMAT such as head=keep"),
    ],
)
def test_a_rule_without_effect_or_meaning_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        formats(text)
