"""Reads the preprocessing of images from the files beside the weights.

These are ``preprocessor_config.json`` of transformers, and ``pretrained_cfg`` in the
``config.json`` of timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError

# Numbers of PIL's filters.
_FILTERS = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip


def from_transformers(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Keys of ``config.data`` that ``preprocessor_config.json`` decides.

    The file's mean and std are of pixel values that are multiplied by ``rescale_factor``; those of
    ``config.data`` are of pixel values in [0, 1], so another factor than 1/255 is divided out.

    Raises:
      UserError: a step that the preprocessing here does not have.
    """
    found: dict[str, Any] = {}
    scale = _largest(values, path)
    if values.get("do_offset", False) or values.get("rescale_offset", False):
        raise UserError(
            f"{path}: do_offset: this model subtracts 1 from pixel values before it normalises "
            f"them, which is not read; set do_offset to false there and write mean + 1 for each "
            f"image_mean, or remove the file and set data.mean and data.std"
        )
    if values.get("do_flip_channel_order", False):
        raise UserError(
            f"{path}: do_flip_channel_order: the colours of this model are in the order blue, "
            f"green, red, which no key of config.data can express"
        )
    if values.get("do_normalize", True):
        for key, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if theirs in values:
                colours = _colours(values[theirs], f"{path}: {theirs}")
                found[key] = tuple(v / scale for v in colours)
    else:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1 / scale,) * 3}
    if "resample" in values:
        if values["resample"] not in _FILTERS:
            raise UserError(
                f"{path}: resample: expected the number of a filter of Pillow, 0 to 5, found "
                f"{values['resample']!r}; correct the file, or remove it and set data.interpolation"
            )
        found["interpolation"] = _FILTERS[values["resample"]]
    if values.get("do_resize", True):
        found |= _size(values, path)
    return found


def _size(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``image_size`` and ``crop``: side of the crop, and its share of the resized short side."""
    size = values.get("size")
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    both = size.get("height") if isinstance(size, dict) else size
    if isinstance(size, dict) and size.get("height") != size.get("width"):
        raise UserError(f"{path}: size: expected a square, found {size!r}")
    side = short or both
    if isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= 10_000:
        return {}
    if values.get("crop_pct") is not None and short:  # ConvNeXT and ResNet of transformers
        return {"image_size": side, "crop": float(values["crop_pct"]) if side < 384 else 0.0}
    if values.get("do_center_crop"):
        crop = values.get("crop_size", side)
        crop = crop.get("height") if isinstance(crop, dict) else crop
        if isinstance(crop, bool) or not isinstance(crop, int) or not 0 < crop <= side:
            raise UserError(f"{path}: crop_size: expected a side up to {side}, found {crop!r}")
        return {"image_size": crop, "crop": crop / side}
    return {"image_size": side, "crop": 1.0 if short else 0.0}


def from_timm(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Keys of ``config.data`` that the ``pretrained_cfg`` of timm decides."""
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        if key in values:
            found[key] = _colours(values[key], f"{path}: pretrained_cfg: {key}")
    if values.get("interpolation") in _FILTERS.values():
        found["interpolation"] = values["interpolation"]
    size = values.get("input_size")
    if (
        isinstance(size, list)
        and len(size) == 3
        and size[1] == size[2]
        and isinstance(size[1], int)
    ):
        found["image_size"] = size[1]
    if isinstance(values.get("crop_pct"), int | float) and 0 < values["crop_pct"] <= 1:
        squash = values.get("crop_mode") == "squash"
        found["crop"] = 0.0 if squash else float(values["crop_pct"])
    return found


def _largest(values: Mapping[str, Any], path: Path) -> float:
    """The value of a white pixel before it is normalised: 1.0 where values are divided by 255."""
    if not values.get("do_rescale", True):
        return 255.0
    factor = values.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
        raise UserError(f"{path}: rescale_factor: expected a number above 0, found {factor!r}")
    # 1/255 is written with fewer digits in some files.
    return 1.0 if abs(factor * 255 - 1) < 1e-3 else factor * 255


def _colours(value: Any, where: str) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        raise UserError(f"{where}: expected three numbers, found {value!r}")
    return tuple(float(v) for v in value)
