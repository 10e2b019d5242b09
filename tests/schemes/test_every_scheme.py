"""Every scheme without added parameters, on both families: exactly the declared leaves move.
Schemes that add parameters are in test_deltas.py.
"""

import math
import re

import pytest
from small_models import CONVS, DEPTH, RESNET, VIT, WIDTH, adapted, train

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.schemes.library import SCHEMES
from finetune_jax.training.audit import audit, snapshot

# Scheme to the pattern of the leaves that train, per family.
MASKS = {
    "full": (".*", ".*"),
    "head": ("head/.*", "head/.*"),
    "linear_probe": ("head/.*", "head/.*"),
    "last_k(1)": ("(block_1|norm|head)/.*", "(layer3_block0|head)/.*"),
    "first_k(1)": ("(stem|block_0)/.*", "(stem|layer1_block0)/.*"),
    "stages('stem') + head": ("(stem|head)/.*", "(stem|head)/.*"),
    "norm": (".*/?norm\\d*/.*", ".*/norm\\d*/.*"),
    "norm_only": ("head/.*|.*/?norm\\d*/.*", "head/.*|.*/norm\\d*/.*"),
    "bias_only": (".*/bias|head/.*", ".*/bias|head/.*"),
    "llrd(0.75)": (".*", ".*"),
    "discriminative": (".*", ".*"),
    "slice(0.1, 1.0) + last_k(1)": ("(block_1|norm|head)/.*", "(layer3_block0|head)/.*"),
    "auto_rgn": ("(?!.*norm\\d*/).*", "(?!.*norm\\d*/).*"),
    "auto_snr": ("(?!.*norm\\d*/).*", "(?!.*norm\\d*/).*"),
}


# Schemes that are tried on both families. The other schemes are tried on the ResNet, and in the
# slow tests on both families.
QUICK = ("full", "last_k(1)", "bias_only", "norm_only")


def test_all_registered_schemes_are_tried():
    tried = {text.split("(")[0].split(" ")[0] for text in (*MASKS, *VIT, *RESNET)}
    # The term deltas trains what is in place: see test_phases.py.
    assert tried | {"deltas"} == set(SCHEMES)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("resnet", scheme) for scheme in MASKS]
    + [
        pytest.param("vit", scheme, marks=[] if scheme in QUICK else pytest.mark.slow)
        for scheme in MASKS
    ],
)
def test_what_is_declared_moves_and_nothing_else(base, name, scheme):
    _, plan, model, variables = adapted(base, name, scheme)
    pattern = MASKS[scheme][name != "vit"]
    expected = {p for p in tree.flatten(variables["params"]) if re.fullmatch(pattern, p)}
    assert set(plan.trainable) == expected
    assert 0 < len(expected) <= len(plan.leaves)
    after = train(plan, model, variables)
    counts = audit(plan, snapshot(variables), after)
    assert counts["moved_leaves"] == len(expected)
    assert counts["frozen_leaves"] == len(plan.leaves) - len(expected)


# Parameters of the test ViT (2 blocks, width w, patch 16, 32 pixels) and of ResNet-8, written out.
W, D = WIDTH, DEPTH
BLOCK = 4 * (W * W + W) + (4 * W * W + 4 * W) + (4 * W * W + W) + 4 * W
STEM = 16 * 16 * 3 * W + W + W + 5 * W
CONV = {(a, b): 9 * a * b for a, b in {*CONVS}}
RESNET_BODY = sum(CONV[c] + 2 * c[1] for c in CONVS)
COUNTS = {
    "full": (STEM + D * BLOCK + 2 * W + 5 * W + 5, RESNET_BODY + 325),
    "linear_probe": (5 * W + 5, 325),
    "last_k(1)": (BLOCK + 2 * W + 5 * W + 5, 9 * 32 * 64 + 9 * 64 * 64 + 2 * 128 + 325),
    "first_k(1)": (STEM + BLOCK, 9 * 3 * 16 + 32 + 2 * (9 * 16 * 16 + 32)),
    "stages('stem') + head": (STEM + 5 * W + 5, 9 * 3 * 16 + 32 + 325),
    "norm_only": (D * 4 * W + 2 * W + 5 * W + 5, 2 * sum(b for _, b in CONVS) + 325),
    # Biases of patch embedding, attention, MLP and norms.
    "bias_only": (
        W + D * (4 + 4 + 1 + 2) * W + W + 5 * W + 5,
        sum(b for _, b in CONVS) + 325,
    ),
}


@pytest.mark.parametrize("scheme", COUNTS)
def test_counts_are_the_formulas(base, scheme):
    for name, expected in zip(("vit", "resnet"), COUNTS[scheme], strict=True):
        _, plan, _, _ = adapted(base, name, scheme)
        found = sum(math.prod(x.shape) for x in plan.leaves if x.trains)
        assert found == expected, name


def test_the_small_bitfit_trains_query_and_mlp_in_biases(base):
    _, plan, _, _ = adapted(base, "vit", "bias_only(on='query|mlp_in')")
    assert sum(math.prod(x.shape) for x in plan.leaves if x.trains) == D * 5 * W + 5 * W + 5
    with pytest.raises(UserError, match="Did you mean 'query'"):
        adapted(base, "vit", "bias_only(on='qurey')")


@pytest.mark.parametrize(
    "scheme", ["ssf + head", "random_mask('norm_only')", "lora(rank=2) + head"]
)
def test_a_delta_beside_a_norm_leaves_its_statistics(base, scheme):
    _, plan, _, _ = adapted(base, "resnet", scheme)
    assert plan.tracked == ()
    assert adapted(base, "resnet", "norm_only")[1].tracked


@pytest.mark.parametrize("scheme", [s for s in MASKS if "auto" not in s])
def test_optimizer_holds_the_trainable_scalars_alone(base, scheme):
    _, plan, _, variables = adapted(base, "vit", scheme)
    trainable, frozen = plan.split(variables["params"])
    assert tree.size(trainable) == sum(math.prod(x.shape) for x in plan.leaves if x.trains)
    assert tree.size(trainable) + tree.size(frozen) == tree.size(variables["params"])
