"""Every scheme that adds no parameters, on both families: what it declares is what moves.

Those that add parameters are in test_deltas.py.
"""

import math
import re

import pytest
from test_deltas import RESNET, VIT, adapted, base, train  # noqa: F401

from finetune_jax import tree
from finetune_jax.schemes.library import SCHEMES
from finetune_jax.training.audit import audit, snapshot

# Scheme to the pattern of the leaves that train, per family.
MASKS = {
    "full": (".*", ".*"),
    "head": ("head/.*", "head/.*"),
    "linear_probe": ("head/.*", "head/.*"),
    "last_k(1)": ("(block_2|norm|head)/.*", "(layer3_block2|head)/.*"),
    "first_k(1)": ("(stem|block_0)/.*", "(stem|layer1_block0)/.*"),
    "stages('stem') + head": ("(stem|head)/.*", "(stem|head)/.*"),
    "norm": (".*/?norm\\d*/.*", ".*/norm\\d*/.*"),
    "norm_only": ("head/.*|.*/?norm\\d*/.*", "head/.*|.*/norm\\d*/.*"),
    "bias_only": (".*/bias|head/.*", ".*/bias|head/.*"),
    "llrd(0.75)": (".*", ".*"),
    "discriminative": (".*", ".*"),
    "slice(0.1, 1.0) + last_k(1)": ("(block_2|norm|head)/.*", "(layer3_block2|head)/.*"),
    "auto_rgn": ("(?!.*norm\\d*/).*", "(?!.*norm\\d*/).*"),
    "auto_snr": ("(?!.*norm\\d*/).*", "(?!.*norm\\d*/).*"),
}


def test_all_registered_schemes_are_tried():
    tried = {text.split("(")[0].split(" ")[0] for text in (*MASKS, *VIT, *RESNET)}
    assert tried == set(SCHEMES)


@pytest.mark.parametrize("scheme", MASKS)
@pytest.mark.parametrize("name", ["vit", "resnet20_cifar"])
def test_what_is_declared_moves_and_nothing_else(base, name, scheme):  # noqa: F811
    _, plan, model, variables = adapted(base, name, scheme)
    pattern = MASKS[scheme][name != "vit"]
    expected = {p for p in tree.flatten(variables["params"]) if re.fullmatch(pattern, p)}
    assert set(plan.trainable) == expected
    assert 0 < len(expected) <= len(plan.leaves)
    after = train(plan, model, variables)
    counts = audit(plan, snapshot(variables), after)
    assert counts["moved_leaves"] == len(expected)
    assert counts["frozen_leaves"] == len(plan.leaves) - len(expected)


@pytest.mark.parametrize("scheme", [s for s in MASKS if "auto" not in s])
def test_optimizer_holds_the_trainable_scalars_alone(base, scheme):  # noqa: F811
    _, plan, _, variables = adapted(base, "vit", scheme)
    trainable, frozen = plan.split(variables["params"])
    assert tree.size(trainable) == sum(math.prod(x.shape) for x in plan.leaves if x.trains)
    assert tree.size(trainable) + tree.size(frozen) == tree.size(variables["params"])
