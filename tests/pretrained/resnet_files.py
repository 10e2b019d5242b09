"""ResNet-20 by hand: initial variables, and the same network under akamaster's names."""

from __future__ import annotations

from typing import Any

import numpy as np


def resnet20(
    classes: int = 10, seed: int = 0, dtype: Any = np.float32, blocks: int = 3
) -> dict[str, Any]:
    """``{'params': nested, 'batch_stats': nested}`` of random arrays; 1 block is ResNet-8."""
    random = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(dtype)

    def norm(width: int, *names: str) -> dict[str, np.ndarray]:
        return {name: abs(array(width)) if name == "var" else array(width) for name in names}

    params = {"stem": {"conv": {"kernel": array(3, 3, 3, 16)}, "norm": norm(16, "scale", "bias")}}
    stats = {"stem": {"norm": norm(16, "mean", "var")}}
    before = 16
    for layer, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            stage = f"layer{layer}_block{block}"
            params[stage], stats[stage] = {}, {}
            for k in (1, 2):
                params[stage][f"conv{k}"] = {"kernel": array(3, 3, before, width)}
                params[stage][f"norm{k}"] = norm(width, "scale", "bias")
                stats[stage][f"norm{k}"] = norm(width, "mean", "var")
                before = width
    params["head"] = {"kernel": array(64, classes), "bias": array(classes)}
    return {"params": params, "batch_stats": stats}


def akamaster(variables: dict[str, Any], prefix: str = "module.") -> dict[str, np.ndarray]:
    """The variables with akamaster's names and layouts, written without the name map."""
    norm = (("params", "scale", "weight"), ("params", "bias", "bias")) + (
        ("batch_stats", "mean", "running_mean"),
        ("batch_stats", "var", "running_var"),
    )
    out: dict[str, np.ndarray] = {}

    def add_norm(stage: str, ours: str, theirs: str) -> None:
        for collection, mine, its in norm:
            out[f"{prefix}{theirs}.{its}"] = variables[collection][stage][ours][mine]
        out[f"{prefix}{theirs}.num_batches_tracked"] = np.array(7)

    def oihw(kernel: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(kernel, (3, 2), (0, 1)))

    params = variables["params"]
    out[f"{prefix}conv1.weight"] = oihw(params["stem"]["conv"]["kernel"])
    add_norm("stem", "norm", "bn1")
    for layer in (1, 2, 3):
        for block in range((len(params) - 2) // 3):
            stage = f"layer{layer}_block{block}"
            for k in (1, 2):
                theirs = f"layer{layer}.{block}."
                out[f"{prefix}{theirs}conv{k}.weight"] = oihw(params[stage][f"conv{k}"]["kernel"])
                add_norm(stage, f"norm{k}", f"{theirs}bn{k}")
    out[f"{prefix}linear.weight"] = np.ascontiguousarray(params["head"]["kernel"].T)
    out[f"{prefix}linear.bias"] = params["head"]["bias"]
    return out
