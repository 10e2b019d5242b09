"""MLP-Mixers against timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401 - timm needs it first
from harness import Case, randomise, state_arrays

from finetune_jax.models.mixer import Mixer

_STAGES = {"stem": "stem", **{f"block_{i}": f"blocks.{i}" for i in range(3)}}


def _timm():
    import timm

    model = timm.models.mlp_mixer.MlpMixer(
        num_classes=7, img_size=32, patch_size=8, num_blocks=3, embed_dim=48
    )
    return randomise(model)


def _npz(module: Any, folder: Path) -> Path:
    """Writes a file in the format of google-research/vision_transformer."""
    names = {
        "stem.proj": "stem", "norm": "pre_head_layer_norm", "head": "head", "norm1": "LayerNorm_0",
        "norm2": "LayerNorm_1", "mlp_tokens": "token_mixing", "mlp_channels": "channel_mixing",
        "fc1": "Dense_0", "fc2": "Dense_1",
    }  # fmt: skip
    written = {}
    for name, array in state_arrays(module).items():
        path, kind = name.rsplit(".", 1)
        if path.startswith("blocks."):
            _, number, *inner = path.split(".")
            theirs = "/".join([f"MixerBlock_{number}", *(names[part] for part in inner)])
        else:
            theirs = names[path]
        if kind == "weight":
            kind = "scale" if array.ndim == 1 else "kernel"
            array = array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim])
        written[f"{theirs}/{kind}"] = array
    np.savez(folder / "weights.npz", **written)
    return folder / "weights.npz"


CASES = [
    Case(
        "mixer/timm", "mixer", "timm", _timm, lambda: Mixer(48, 3, 8, 7), _STAGES, gradients=True
    ),
    Case(
        "mixer/vit_jax/npz", "mixer", "vit_jax", _timm, lambda: Mixer(48, 3, 8, 7), _STAGES,
        save=_npz, export=False,
    ),
]  # fmt: skip
