"""ConvNeXt V1 and V2 against timm, transformers, and timm's reader of the original files."""

from __future__ import annotations

from pathlib import Path

import torch
from harness import Case, randomise

from finetune_jax.models.convnext import ConvNeXt

_DEPTHS, _WIDTHS = (1, 2, 1, 1), (16, 24, 32, 40)


def _timm(version: int, conv_mlp: bool):
    import timm

    options = {"use_grn": True, "ls_init_value": None} if version == 2 else {}
    return randomise(
        timm.models.convnext.ConvNeXt(
            num_classes=7, depths=_DEPTHS, dims=_WIDTHS, conv_mlp=conv_mlp, **options
        )
    )


def _transformers(kind: str):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        depths=list(_DEPTHS), hidden_sizes=list(_WIDTHS), num_labels=7
    )
    return randomise(getattr(transformers, f"{kind}ForImageClassification")(config))


def facebook_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's tensors with the names and shapes of the original files."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts = ["downsample_layers", "0", *parts[1:]]
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "stages":
            last = ".".join(parts[4:])
            for theirs, original in (
                ("conv_dw", "dwconv"), ("mlp.fc", "pwconv"), ("mlp.grn.weight", "grn.gamma"),
                ("mlp.grn.bias", "grn.beta"),
            ):  # fmt: skip
                last = last.replace(theirs, original)
            parts = ["stages", parts[1], parts[3], last]
            if "grn" in last:
                tensor = tensor.reshape(1, 1, 1, -1)
        else:
            parts = [parts[-2].replace("fc", "head"), parts[-1]]
        found[".".join(parts)] = tensor
    return found


def _save_facebook(module: torch.nn.Module, folder: Path) -> Path:
    """Writes a ``.pth`` of the authors, from which timm's reader must restore the module."""
    from timm.models.convnext import checkpoint_filter_fn

    original = facebook_names(module.state_dict())
    back = checkpoint_filter_fn({"model": original}, module)
    assert back.keys() == module.state_dict().keys()
    assert all(torch.equal(back[n], t) for n, t in module.state_dict().items())
    path = folder / "convnext.pth"
    torch.save({"model": original}, path)
    return path


def _stages(template: str, **more: str) -> dict[str, str]:
    blocks = {
        f"stage{i}_block{j}": template.format(i=i, j=j, k=2 * i + 1)
        for i, depth in enumerate(_DEPTHS)
        for j in range(depth)
    }
    return {**blocks, **more}


_TIMM = _stages("stages.{i}.blocks.{j}", stem="stem")
_HF = {
    name: _stages(f"{name}.encoder.stages.{{i}}.layers.{{j}}", stem=f"{name}.embeddings",
                  norm=f"{name}.layernorm")
    for name in ("convnext", "convnextv2")
}  # fmt: skip


def _ours(version: int):
    return lambda: ConvNeXt(_DEPTHS, _WIDTHS, 7, version)


def _torchvision():
    """torchvision's ConvNeXt, whose factors on residual branches have the shape [c, 1, 1]."""
    from torchvision.models import convnext

    sides = [*_WIDTHS[1:], None]
    settings = [convnext.CNBlockConfig(*s) for s in zip(_WIDTHS, sides, _DEPTHS, strict=True)]
    return randomise(convnext.ConvNeXt(settings, num_classes=7))


CASES = [
    Case(
        "convnext/timm/1x1", "convnext_1x1", "timm", lambda: _timm(1, True), _ours(1), _TIMM,
        image_size=64, gradients=True,
    ),
    Case(
        "convnext/timm/dense", "convnext", "timm", lambda: _timm(1, False), _ours(1), _TIMM,
        # Sides that four halvings do not divide.
        image_size=76,
    ),
    Case(
        "convnextv2/timm/1x1", "convnextv2_1x1", "timm", lambda: _timm(2, True), _ours(2), _TIMM,
        image_size=64, gradients=True,
    ),
    Case(
        "convnextv2/timm/dense", "convnextv2", "timm", lambda: _timm(2, False), _ours(2), _TIMM,
        image_size=64,
    ),
    Case(
        "convnext/facebook", "convnext", "facebook", lambda: _timm(1, False), _ours(1), _TIMM,
        save=_save_facebook, image_size=64, export=False,
    ),
    Case(
        "convnextv2/facebook", "convnextv2", "facebook", lambda: _timm(2, False), _ours(2), _TIMM,
        save=_save_facebook, image_size=64, export=False,
    ),
    Case(
        "convnext/torchvision", "convnext", "torchvision", _torchvision, _ours(1),
        _stages("features.{k}.{j}", stem="features.0"), image_size=64, gradients=True,
    ),
    Case(
        "convnext/transformers", "convnext", "transformers", lambda: _transformers("ConvNext"),
        _ours(1), _HF["convnext"], image_size=64,
    ),
    Case(
        "convnextv2/transformers", "convnextv2", "transformers",
        lambda: _transformers("ConvNextV2"), _ours(2), _HF["convnextv2"], image_size=64,
    ),
]  # fmt: skip
