"""Weights at another size than in training: equal to the resizing of the publishing projects."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)
ndimage = pytest.importorskip("scipy.ndimage", reason="not run: needs requirements-reference.txt")

import vit_files as files  # noqa: E402
from cases_vit import _REGISTERS, _SMALL, _timm, _transformers  # noqa: E402
from harness import save_safetensors  # noqa: E402

from finetune_jax.models import initialise  # noqa: E402
from finetune_jax.models.vit import ViT  # noqa: E402
from finetune_jax.pretrained import load  # noqa: E402
from finetune_jax.pretrained.surgery import adapt_channels, resize_patch  # noqa: E402

_FROM, _PATCH = 32, 8
_SIDES = [24, 40, 64]
_LEAF = "params/stem/position_embedding"


def _loaded(path, side, *, model=None, **options):
    """(our model, its variables, reason of each leaf in the manifest), for another image size."""
    model = model or ViT(num_classes=7, **_SMALL | options)
    init = jax.eval_shape(lambda key: initialise(model, side, key), jax.random.key(0))
    init["params"]["head"] = {n: np.zeros(x.shape) for n, x in init["params"]["head"].items()}
    kinds = ("position", "patch")
    variables, manifest = load(path, "vit", init, model, resize=kinds, reinitialise_head=True)
    return model, variables, {row.leaf: row.reason for row in manifest.rows}


def _position(variables):
    return variables["params"]["stem"]["position_embedding"]


def _close(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("side", _SIDES)
@pytest.mark.parametrize("registers", [0, 4])
def test_positions_of_timm(tmp_path, side, registers):
    from timm.layers import resample_abs_pos_embed

    module = _timm(reg_tokens=registers)
    path = save_safetensors(module, tmp_path)
    _, variables, reasons = _loaded(path, side, registers=registers)
    grid = [side // _PATCH] * 2
    with torch.no_grad():
        theirs = resample_abs_pos_embed(module.pos_embed, grid, num_prefix_tokens=1 + registers)
    _close(_position(variables), theirs)
    assert f"positions 4x4 to {grid[0]}x{grid[0]} by bicubic_antialias" in reasons[_LEAF]


_EMBEDDINGS = {
    "vit": ("ViTModel", "ViTConfig", {"intermediate_size": 192}, {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}, {"layer_scale": 1.0}),
    "dinov2_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, _REGISTERS,
    ),
    "clip": (
        "CLIPVisionModel", "CLIPVisionConfig", {"intermediate_size": 192},
        {"pre_norm": True, "patch_bias": False},
    ),
    "siglip": (
        "SiglipVisionModel", "SiglipVisionConfig", {"intermediate_size": 192}, {"pooling": "map"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", _SIDES)
@pytest.mark.parametrize("name", _EMBEDDINGS)
def test_positions_of_transformers(tmp_path, name, side):
    kind, config, options, ours = _EMBEDDINGS[name]
    module = _transformers(kind, config, **options)
    path = files.hub(module, tmp_path)
    _, variables, _ = _loaded(path, side, **ours)
    tokens = (side // _PATCH) ** 2 + (name != "siglip")
    with torch.no_grad():
        theirs = module.embeddings.interpolate_pos_encoding(torch.zeros(1, tokens, 48), side, side)
    _close(_position(variables), theirs)


@pytest.mark.parametrize("side", _SIDES)
@pytest.mark.parametrize("token", [True, False])
def test_positions_of_the_jax_originals(tmp_path, side, token):
    """big_vision and vit_jax call scipy.ndimage.zoom with order=1."""
    options = {} if token else {"global_pool": "avg", "class_token": False, "fc_norm": False}
    module = _timm(**options)
    path = files.npz("" if token else "params/", not token)(module, tmp_path)
    _, variables, _ = _loaded(path, side, pooling="token" if token else "gap")
    before = module.pos_embed.detach().numpy()
    grid = before[:, int(token) :].reshape(4, 4, -1)
    zoom = side / _FROM
    theirs = ndimage.zoom(grid, (zoom, zoom, 1), order=1).reshape(1, -1, grid.shape[-1])
    _close(_position(variables), np.concatenate([before[:, : int(token)], theirs], axis=1))


def test_a_class_token_that_holds_its_position(tmp_path):
    """timm's DINOv2 with registers in a model that adds positions like transformers."""
    module = _timm(init_values=1e-5, reg_tokens=4, no_embed_class=True)
    path = save_safetensors(module, tmp_path)
    model, variables, reasons = _loaded(path, _FROM, **_REGISTERS)
    assert "0 for 1 position before the grid" in reasons[_LEAF]
    images = np.random.default_rng(0).normal(size=(2, _FROM, _FROM, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    _close(np.asarray(model.apply(variables, images, stop="head")), theirs[:, 0].numpy())


@pytest.mark.parametrize("size", [(12, 12), (16, 16), (6, 6), (4, 4), (10, 14)])
def test_patches_of_timm(size):
    from timm.layers import resample_patch_embed

    kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 5)).astype(np.float32)
    theirs = resample_patch_embed(
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).double(), size, "bilinear", True
    )
    ours = resize_patch(kernel, size)
    # timm's pseudo-inverse is in f32, and amplifies its rounding.
    np.testing.assert_allclose(ours, theirs.numpy().transpose(2, 3, 1, 0), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 10])
def test_input_channels_of_timm(channels):
    from timm.models._manipulate import adapt_input_conv

    kernel = np.random.default_rng(0).normal(size=(4, 4, 3, 5)).astype(np.float32)
    theirs = adapt_input_conv(channels, torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
    _close(adapt_channels(kernel, channels), theirs.numpy().transpose(2, 3, 1, 0))


def test_a_patch_of_another_size_is_loaded(tmp_path):
    module = _timm()
    model = ViT(num_classes=7, **{**_SMALL, "patch": 16})
    _, variables, reasons = _loaded(save_safetensors(module, tmp_path), 64, model=model)
    before = module.patch_embed.proj.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(
        variables["params"]["stem"]["embedding"]["kernel"], resize_patch(before, (16, 16))
    )
    assert "patch 8x8 to 16x16" in reasons["params/stem/embedding/kernel"]
