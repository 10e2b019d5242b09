import jax
import numpy as np
import pytest
from conv_checks import (
    abstract,
    check_bfloat16,
    check_names,
    check_parts,
    check_schemes,
    draw,
    parameters,
)
from safetensors.numpy import save_file

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import build, initial_variables
from finetune_jax.models.dense import per_place
from finetune_jax.models.vgg import DEPTHS, HEADS, VGG, adaptive_mean
from finetune_jax.pretrained import load, map_of, save_native

SMALL = VGG(DEPTHS[16], 5, widths=(4, 4, 8, 8, 8), hidden=(12, 16), neck_width=8, pool_side=2)
NORMS = SMALL.clone(batch_norm=True)


def stages(model):
    return {leaf.split("/")[1] for leaf in tree.flatten(abstract(model))}


@pytest.mark.parametrize("kind", HEADS)
def test_parts_make_the_whole(kind):
    model = SMALL.clone(head_kind=kind, batch_norm=kind == "concat_pool")
    check_parts(model, 64)
    check_bfloat16(model, 64)


@pytest.mark.parametrize(
    ("family", "origin", "model"),
    [
        ("vgg16", "torchvision", SMALL), ("vgg16", "timm", SMALL), ("vgg16", "keras", SMALL),
        ("vgg16_bn", "torchvision", NORMS), ("vgg16_bn", "timm", NORMS),
    ],
)  # fmt: skip
def test_names_map_to_leaves_and_back(family, origin, model):
    check_names(family, origin, model)


def test_published_parameter_counts():
    # torchvision's num_params.
    assert parameters("vgg16") == parameters("vgg16_keras") == 138_357_544
    assert parameters("vgg16_bn") == 138_365_992
    assert parameters("vgg19") == 143_667_240
    assert parameters("vgg19_bn") == 143_678_248


@pytest.mark.parametrize(("length", "side"), [(1, 7), (2, 7), (7, 7), (8, 7), (10, 3)])
def test_adaptive_mean_takes_overlapping_cells(length, side):
    x = np.arange(length, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, length, 1))
    cells = [
        np.arange(i * length // side, -(-(i + 1) * length // side)).mean() for i in range(side)
    ]
    found = np.asarray(adaptive_mean(x.astype(np.float32), side))
    assert found.shape == (1, side, side, 1)
    np.testing.assert_allclose(found[0, :, 0, 0], cells, rtol=1e-6)
    np.testing.assert_allclose(found[0, :, -1, 0], cells, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fresh", "dropped"),
    [
        ("last_fc_only", {"head"}, set()),
        ("flatten_mlp", {"fc1", "fc2", "head"}, set()),
        ("gap_linear", {"head"}, {"fc1", "fc2"}),
        ("concat_pool", {"neck", "head"}, {"fc1", "fc2"}),
    ],
)
def test_what_a_head_does_not_take_is_listed(tmp_path, kind, fresh, dropped):
    published = SMALL.clone(num_classes=9)
    names = map_of("vgg16", "torchvision")
    tensors = names.write(tree.flatten(draw(published)), published.sizes)
    save_file(tensors, tmp_path / "vgg.safetensors")
    model = SMALL.clone(head_kind=kind)
    variables, manifest = load(tmp_path / "vgg.safetensors", "vgg16", draw(model), model)
    assert tree.flatten(variables).keys() == tree.flatten(abstract(model)).keys()
    rows = manifest.rows
    assert {r.source_name for r in rows if r.source_name} == tensors.keys()
    assert {r.leaf.split("/")[1] for r in rows if r.decision == "reinitialised"} == fresh
    # `classifier.0.weight` belongs to fc1, `classifier.3.weight` to fc2.
    gone = {names.targets(r.source_name)[0].leaf.split("/")[1] for r in rows if r.leaf is None}
    assert gone == dropped
    for row in rows:
        if row.decision == "dropped":
            assert kind in row.reason
        if row.leaf and row.leaf.split("/")[1] in model.fresh_stages:
            assert kind in row.reason
    np.testing.assert_array_equal(
        variables["params"]["block1"]["conv1"]["kernel"],
        tensors["features.0.weight"].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize("kind", HEADS)
def test_our_own_file_comes_back_whole(tmp_path, kind):
    model = SMALL.clone(head_kind=kind)
    before = draw(model)
    save_native(tmp_path / "vgg.safetensors", before, {})
    after, manifest = load(tmp_path / "vgg.safetensors", "vgg16", abstract(model), model)
    assert set(manifest.counts()) == {"loaded"}
    for leaf, value in tree.flatten(after).items():
        np.testing.assert_array_equal(value, tree.flatten(before)[leaf])


def test_a_file_of_another_image_size_is_refused_with_both_shapes(tmp_path):
    keras = SMALL.clone(pool_side=0)
    save_native(tmp_path / "vgg.safetensors", draw(keras, 64), {})
    init = initial_variables(keras, 32, stages=("head",))
    with pytest.raises(UserError, match=r"fc1.*\(32, 12\) in file, \(8, 12\) in model"):
        load(tmp_path / "vgg.safetensors", "vgg16", init)


def test_heads_are_checked():
    assert build("vgg16", 5).stages[-3:] == ("fc1", "fc2", "head")
    assert build("vgg16_keras", 5, head="concat_pool").stages[-2:] == ("neck", "head")
    assert build("vgg19", 5, head="gap_linear").stages == (
        *(f"block{i}" for i in range(1, 6)),
        "head",
    )
    with pytest.raises(UserError, match="Did you mean 'gap_linear'"):
        build("vgg16", 5, head="gap_liner")
    with pytest.raises(UserError, match="one head only"):
        build("vit_ti16", 5, head="gap_linear")
    with pytest.raises(UserError, match="gap_linear has no dropout"):
        abstract(build("vgg16", 5, head="gap_linear", dropout=0.5))


def test_schemes():
    check_schemes(
        SMALL,
        {
            "last_k(1)": {"block5", "fc1", "fc2", "head"},
            "lora(rank=2)": {f"block{i}" for i in range(1, 6)},
            "lora(rank=2, on='dense')": {"fc1", "fc2"},
            "ssf + head": set(SMALL.stages),
            "bias_only": set(SMALL.stages),
        },
    )
    neck = NORMS.clone(head_kind="concat_pool")
    check_schemes(neck, {"norm_only": set(neck.stages), "stages('neck') + head": {"neck", "head"}})


def test_a_head_on_the_mean_can_answer_at_every_position():
    model = SMALL.clone(head_kind="gap_linear")
    dense = per_place(model, 64)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    shape = jax.eval_shape(dense.apply, abstract(dense, 64), images).shape
    assert shape == (2, 2, 2, 5)
    with pytest.raises(UserError, match="has no grid of features"):
        per_place(SMALL, 64)
