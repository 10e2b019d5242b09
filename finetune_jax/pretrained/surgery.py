"""Surgery: resizes leaves whose shape depends on the model's input to another input.

Position embeddings are resized to another grid, and patch kernels to another patch size or another
number of channels. Surgery changes only leaves that a model names in `StagedModel.resizable`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from finetune_jax.models.staged import Resizable

KINDS = ("position", "patch", "channels")


def cubic_weights(old: int, new: int, *, antialias: bool, corners: bool = False) -> np.ndarray:
    """Weights f64[new, old] of bicubic interpolation along one axis.

    Sample centres are at half pixels; with `corners`, the first and the last sample keep their
    positions, as with torch's ``align_corners``.

    With `antialias`, the weights are those of Pillow and timm: Keys' a = -1/2, a wider kernel when
    the size shrinks, and renormalised weights at the border. Without, the weights are those of
    torch's ``interpolate``: a = -3/4, and the border pixel is repeated.
    """
    a = -0.5 if antialias else -0.75
    scale = max(old / new, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    if corners:
        centres = np.linspace(0, old - 1, new)
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
    """Weights f64[new, old] of linear interpolation along one axis.

    With `corners`, the first and the last sample keep their positions, as in
    ``scipy.ndimage.zoom``, which the original JAX code uses. Without, sample centres are at half
    pixels, and the kernel is wider when the size shrinks, as in ``jax.image.resize``.
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
    "bicubic_torch_corners": lambda old, new: cubic_weights(
        old, new, antialias=False, corners=True
    ),
    "linear_corners": lambda old, new: linear_weights(old, new, corners=True),
}


def misfit(
    found: tuple[int, ...], wanted: tuple[int, ...], leaf: Resizable, allowed: Mapping[str, bool]
) -> str:
    """Reason why surgery cannot resize a tensor; '' if it can.

    Args:
      found: shape of the tensor, in our layout.
      wanted: shape of the leaf.
      leaf: kind of the leaf.
      allowed: which of `KINDS` are allowed; missing kinds are not.
    """
    if leaf.kind == "position":
        if len(found) != 3 or len(wanted) != 3 or found[2] != wanted[2]:
            return "only the number of positions may differ"
        for shape in (found, wanted):
            if not _is_square(shape[1] - leaf.prefix):
                if shape is found and _is_square(shape[1]):
                    continue  # the model has no positions for the tokens before the grid
                return f"{shape[1]} positions, {leaf.prefix} of them before the grid: no square"
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
    """Returns (the resized array, description of the surgery); call only if `misfit` is ''."""
    if leaf.kind == "position":
        return resize_positions(array, wanted[1], leaf.prefix, method)
    how = []
    if array.shape[2] != wanted[2]:
        array = adapt_channels(array, wanted[2])
        how.append(f"input channels adapted to {wanted[2]}")
    if array.shape[:2] != wanted[:2]:
        before = f"{array.shape[0]}x{array.shape[1]}"
        array = resize_patch(array, (wanted[0], wanted[1]))
        how.append(f"patch {before} to {wanted[0]}x{wanted[1]} by FlexiViT's pseudo-inverse")
    return array, "; ".join(how)


def resize_positions(
    embedding: np.ndarray, count: int, prefix: int, method: str
) -> tuple[np.ndarray, str]:
    """Resizes f[1, prefix + n², width] to f[1, count, width]; the prefix is unchanged.

    Args:
      embedding: position embeddings of the prefix and of a square grid. If those of the prefix are
        missing, as in some models, they become 0, which computes the same.
      count: number of positions of the result, with the prefix.
      prefix: number of positions before the grid.
      method: a key of `POSITION_METHODS`.

    Returns:
      (the resized embedding in the dtype of `embedding`, description of the surgery)
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
    interpolated = np.einsum("ai,bj,ijw->abw", weights, weights, square, optimize=True)
    resized = interpolated.reshape(1, new * new, -1).astype(embedding.dtype)
    how = f"positions {old}x{old} to {new}x{new} by {method}"
    return np.concatenate([head, resized], axis=1), f"{added}; {how}" if added else how


def resize_patch(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a kernel f[h, w, in, out] to another patch size, by the pseudo-inverse of a resize.

    With the kernel of FlexiViT (Beyer et al. 2022, arXiv 2212.08013, section 3.4), patches of an
    enlarged image give the same tokens as the original patches with the original kernel.
    """
    rows = linear_weights(kernel.shape[0], size[0], corners=False)
    columns = linear_weights(kernel.shape[1], size[1], corners=False)
    # The pseudo-inverse of a Kronecker product is the product of its factors' pseudo-inverses.
    rows, columns = np.linalg.pinv(rows.T), np.linalg.pinv(columns.T)
    resized = np.einsum("ai,bj,ijcd->abcd", rows, columns, kernel.astype(np.float64), optimize=True)
    result: np.ndarray = resized.astype(kernel.dtype)
    return result


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a kernel f[h, w, in, out] to another number of input channels, as timm does.

    One channel gets the sum over all channels, so that a grey image gives the tokens of the same
    image in RGB. Several channels get repeated kernels, scaled by in / channels so that the
    output keeps its magnitude.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True).astype(kernel.dtype)
    repeated = np.concatenate([kernel] * math.ceil(channels / old), axis=2)[:, :, :channels]
    return (repeated * (old / channels)).astype(kernel.dtype)
