"""Surgery: the few leaves whose shape follows the input, fitted from another input's weights.

Position embeddings to another grid, patch kernels to another patch size or number of channels. Only
leaves that a model names in `StagedModel.resizable` are ever touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from finetune_jax.models.staged import Resizable

KINDS = ("position", "patch", "channels")


def cubic_weights(old: int, new: int, *, antialias: bool) -> np.ndarray:
    """f64[new, old]: bicubic interpolation along one axis, sample centres at half pixels.

    With `antialias` as Pillow and timm do it (Keys' a = -1/2, the kernel widened when shrinking,
    weights renormalised at the border); without, as torch's ``interpolate`` (a = -3/4, the border
    pixel repeated).
    """
    a = -0.5 if antialias else -0.75
    scale = max(old / new, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    reach = math.ceil(2 * scale) + 1
    for i, centre in enumerate(centres):
        for j in range(math.floor(centre) - reach, math.floor(centre) + reach + 1):
            t = abs(j - centre) / scale
            if t < 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            elif t < 2:
                weight = a * (t**3 - 5 * t**2 + 8 * t - 4)
            else:
                continue
            if not antialias:
                weights[i, min(max(j, 0), old - 1)] += weight
            elif 0 <= j < old:
                weights[i, j] += weight
    return weights / weights.sum(1, keepdims=True)


def linear_weights(old: int, new: int, *, corners: bool) -> np.ndarray:
    """f64[new, old]: linear interpolation along one axis.

    With `corners` the first and last samples stay where they are, as ``scipy.ndimage.zoom`` of the
    JAX originals has it; without, sample centres are at half pixels and the kernel is widened when
    shrinking, as in ``jax.image.resize``.
    """
    if corners:
        centres = np.linspace(0, old - 1, new)
        scale = 1.0
    else:
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        scale = max(old / new, 1.0)
    distance = np.abs(np.arange(old)[None] - centres[:, None]) / scale
    weights = np.maximum(0.0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


POSITION_METHODS = {
    "bicubic_antialias": lambda old, new: cubic_weights(old, new, antialias=True),
    "bicubic_torch": lambda old, new: cubic_weights(old, new, antialias=False),
    "linear_corners": lambda old, new: linear_weights(old, new, corners=True),
}


def misfit(
    found: tuple[int, ...], wanted: tuple[int, ...], leaf: Resizable, allowed: Mapping[str, bool]
) -> str:
    """Why a tensor of shape `found` cannot be fitted into `wanted`; '' if it can."""
    if leaf.kind == "position":
        if len(found) != 3 or len(wanted) != 3 or found[2] != wanted[2]:
            return "only the number of positions may differ"
        for shape in (found, wanted):
            if not _is_square(shape[1] - leaf.prefix):
                if shape is found and _is_square(shape[1]):
                    continue  # a model that gives the tokens before the grid no position
                return f"{shape[1]} positions, {leaf.prefix} of them before the grid, are no square"
        return "" if allowed.get("position") else "pretrained.resize does not name 'position'"
    if len(found) != 4 or len(wanted) != 4 or found[3] != wanted[3]:
        return "only patch size and input channels may differ"
    if found[:2] != wanted[:2] and not allowed.get("patch"):
        return "pretrained.resize does not name 'patch'"
    if found[2] != wanted[2] and not allowed.get("channels"):
        return "pretrained.resize does not name 'channels'"
    return ""


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def fit(
    array: np.ndarray, wanted: tuple[int, ...], leaf: Resizable, method: str
) -> tuple[np.ndarray, str]:
    """Returns (the array in the wanted shape, how); only where `misfit` is ''."""
    if leaf.kind == "position":
        return resize_positions(array, wanted[1], leaf.prefix, method)
    how = []
    if array.shape[2] != wanted[2]:
        array = adapt_channels(array, wanted[2])
        how.append(f"input channels adapted to {wanted[2]}")
    if array.shape[:2] != wanted[:2]:
        before = f"{array.shape[0]}x{array.shape[1]}"
        array = resize_patch(array, wanted[:2])
        how.append(f"patch {before} to {wanted[0]}x{wanted[1]} by FlexiViT's pseudo-inverse")
    return array, "; ".join(how)


def resize_positions(
    embedding: np.ndarray, count: int, prefix: int, method: str
) -> tuple[np.ndarray, str]:
    """f[1, prefix + n², width] to f[1, count, width]; the prefix stays as it is.

    Args:
      embedding: positions of a square grid; without those of the prefix, which has none in some
        models, they are 0 here, and that is the same.
      count: of positions wanted, prefix included.
      prefix: positions before the grid.
      method: a key of `POSITION_METHODS`.

    Returns:
      (the resized embedding in the dtype of the given one, how it was done)
    """
    added = ""
    if not _is_square(embedding.shape[1] - prefix):
        none = np.zeros((1, prefix, embedding.shape[2]), embedding.dtype)
        embedding = np.concatenate([none, embedding], axis=1)
        added = f"0 for {prefix} position{'s' * (prefix > 1)} before the grid"
        if embedding.shape[1] == count:
            return embedding, added
    head, grid = embedding[:, :prefix], embedding[:, prefix:]
    old, new = math.isqrt(grid.shape[1]), math.isqrt(count - prefix)
    weights = POSITION_METHODS[method](old, new)
    square = grid.reshape(old, old, -1).astype(np.float64)
    turned = np.einsum("ai,bj,ijw->abw", weights, weights, square, optimize=True)
    resized = turned.reshape(1, new * new, -1).astype(embedding.dtype)
    how = f"positions {old}x{old} to {new}x{new} by {method}"
    return np.concatenate([head, resized], axis=1), f"{added}; {how}" if added else how


def resize_patch(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f[h, w, in, out] to another patch size, by pseudo-inverse of the bilinear resize.

    FlexiViT (Beyer et al. 2022, arXiv 2212.08013, section 3.4): patches enlarged with the image
    give the same tokens as before.
    """
    rows = linear_weights(kernel.shape[0], size[0], corners=False)
    columns = linear_weights(kernel.shape[1], size[1], corners=False)
    # The pseudo-inverse of a Kronecker product is that of its factors.
    rows, columns = np.linalg.pinv(rows.T), np.linalg.pinv(columns.T)
    turned = np.einsum("ai,bj,ijcd->abcd", rows, columns, kernel.astype(np.float64), optimize=True)
    return turned.astype(kernel.dtype)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """f[h, w, in, out] for another number of input channels.

    One channel takes the sum over all, so that a grey image counts as RGB; more are filled by
    repeating, scaled by in / channels so that the output keeps its size. As timm does it.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True).astype(kernel.dtype)
    repeated = np.concatenate([kernel] * math.ceil(channels / old), axis=2)[:, :, :channels]
    return (repeated * (old / channels)).astype(kernel.dtype)
