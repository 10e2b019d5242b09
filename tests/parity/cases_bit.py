"""BiT against timm and transformers, and against timm's reader of the original files."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from harness import Case, randomise

from finetune_jax.models.bit import BiT

_DEPTHS, _WIDTHS, _GROUPS, _STEM = (2, 1, 1, 1), (32, 64, 96, 128), 4, 16


def _draw(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights whose activations stay near 1.

    A standardised kernel enlarges its input by the root of its window's size, whatever its values
    are. The scales of the norms are drawn smaller by this factor.
    """
    randomise(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.mul_(0.2)
    return module


def _timm(epsilon: float):
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return _draw(
        ResNetV2(
            list(_DEPTHS), _WIDTHS, 7, stem_chs=_STEM, stem_type="fixed",
            conv_layer=functools.partial(StdConv2d, eps=epsilon),
            norm_layer=functools.partial(GroupNormAct, num_groups=_GROUPS),
        )
    )  # fmt: skip


def _transformers():
    import transformers

    config = transformers.BitConfig(
        embedding_size=_STEM, hidden_sizes=list(_WIDTHS), depths=list(_DEPTHS),
        num_groups=_GROUPS, num_labels=7,
    )  # fmt: skip
    return _draw(transformers.BitForImageClassification(config))


def npz_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """timm's tensors with the names and layouts of the authors' files."""
    found = {}
    for name, tensor in state.items():
        array = tensor.numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        parts = name.split(".")
        kind = {"weight": "gamma", "bias": "beta"}[parts[-1]]
        if name == "stem.conv.weight":
            path = "root_block/standardized_conv2d/kernel"
        elif parts[0] == "head":
            path = f"head/conv2d/{'kernel' if kind == 'gamma' else 'bias'}"
        elif parts[0] == "norm":
            path = f"group_norm/{kind}"
        else:
            path = f"block{int(parts[1]) + 1}/unit{int(parts[3]) + 1:02d}/"
            module = parts[4]
            if module == "downsample":
                path += "a/proj/standardized_conv2d/kernel"
            else:
                path += "abc"[int(module[-1]) - 1]
                path += "/standardized_conv2d/kernel" if "conv" in module else f"/group_norm/{kind}"
        found[f"resnet/{path}"] = array
    return found


def save_npz(module: torch.nn.Module, folder: Path) -> Path:
    """Writes an original file, from which timm's reader must restore the module."""
    path = folder / "BiT.npz"
    np.savez(path, **npz_names(module.state_dict()))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.load_pretrained(str(path))
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    return path


def _stages(template: str, **more: str) -> dict[str, str]:
    blocks = {
        f"layer{i + 1}_block{j}": template.format(i=i, j=j)
        for i, depth in enumerate(_DEPTHS)
        for j in range(depth)
    }
    return {**blocks, **more}


def _ours(epsilon: float):
    return lambda: BiT(_DEPTHS, 7, _WIDTHS, _STEM, _GROUPS, epsilon)


_TIMM = _stages("stages.{i}.blocks.{j}", stem="stem")

CASES = [
    Case(
        # The epsilon of the authors.
        "bit/npz", "bit", "npz", lambda: _timm(1e-10), _ours(1e-10), _TIMM, save=save_npz,
        image_size=64, export=False,
    ),
    Case(
        "bit/timm", "bit", "timm", lambda: _timm(1e-8), _ours(1e-8), _TIMM, image_size=64,
        gradients=True,
    ),
    Case(
        # Sides that are not even after any halving.
        "bit/transformers", "bit", "transformers", _transformers, _ours(1e-8),
        _stages("bit.encoder.stages.{i}.layers.{j}", stem="bit.embedder"), image_size=67,
    ),
]  # fmt: skip
