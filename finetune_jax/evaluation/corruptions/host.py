"""Corruptions that libraries make on the host; see `finetune_jax.evaluation.corruptions`.

Each is a function of (generator, f32[size, size, 3] in [0, 1], its constants) to the same kind of
image, not yet clipped.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path

import numpy as np

from finetune_jax.errors import UserError

_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
_CLEARING = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # lights edges from below


def lacking(name: str) -> str:
    """What has to be installed for a corruption; empty if nothing is missing."""
    if name == "frost" and not importlib.util.find_spec("imagecorruptions"):
        return (
            "the photographs of frost of the published construction, which a package brings: "
            "pip install --no-deps imagecorruptions"
        )
    if name == "spatter" and not importlib.util.find_spec("cv2"):
        return "OpenCV: pip install opencv-python-headless"
    return ""


def jpeg(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """JPEG and back, by Pillow; constant: quality."""
    del generator
    from PIL import Image

    file = io.BytesIO()
    rounded = (x * 255).round().astype(np.uint8)
    Image.fromarray(rounded).save(file, "JPEG", quality=int(row[0]))
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255


def frost(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """A part of a photograph of frost on top; constants: shares of both, step between its pixels.

    The published sets of 32 pixels take every fifth pixel of the photographs.
    """
    own, added, step = row
    photographs = _photographs(int(step), len(x))
    photograph = photographs[generator.integers(len(photographs))]
    top, left = (generator.integers(n - len(x) + 1) for n in photograph.shape[:2])
    return own * x + added * photograph[top : top + len(x), left : left + len(x)]


@functools.lru_cache(maxsize=2)
def _photographs(step: int, size: int) -> tuple[np.ndarray, ...]:
    """f32[h, w, 3] in [0, 1]; the published construction never draws the last of six."""
    from PIL import Image

    # The package is not imported: that would need all that it depends on.
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"frost needs {lacking('frost')}")
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    found = []
    for path in sorted(folder.glob("frost*"))[:5]:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
            scale = max(1, size * step / min(pixels.size))
            pixels = pixels.resize([int(np.ceil(n * scale)) for n in pixels.size])
        found.append(np.asarray(pixels, np.float32)[step // 2 :: step, step // 2 :: step] / 255)
    return tuple(found)


def spatter(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Drops of water, or of mud.

    Constants: mean, deviation, blur and threshold of the noise that drops are made of; strength of
    water or blur of mud; 1 for mud.
    """
    from scipy.ndimage import gaussian_filter

    mean, deviation, blur, threshold, last, is_mud = row
    noise = generator.normal(mean, deviation, x.shape[:2])
    liquid = gaussian_filter(noise, blur, mode="nearest")
    if is_mud:
        share = gaussian_filter((liquid > threshold).astype(np.float32), last, mode="nearest")
        share = np.where(share < 0.8, 0, share)[..., None]
        return x * (1 - share) + _MUD * share
    liquid = (np.where(liquid < threshold, 0, liquid) * 255).astype(np.uint8)
    shine = liquid * _shine(liquid)
    share = last * shine / max(shine.max(), 1e-12)
    return x + share[..., None] * _WATER


def _shine(drops: np.ndarray) -> np.ndarray:
    """How bright water is by its distance from the edge of its drop, f32 of 0 to 255."""
    import cv2

    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    lit = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, _CLEARING)
    return cv2.blur(lit, (3, 3)).astype(np.float32)
