"""Corruptions that libraries make on the host; see `finetune_jax.evaluation.corruptions`.

The corruptions are functions as described by `finetune_jax.evaluation.corruptions.base.HostChange`.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path

import numpy as np

from finetune_jax.errors import UserError

_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def lacking(name: str) -> str:
    """Returns what must be installed for a corruption; empty if nothing is missing."""
    if name == "frost" and not importlib.util.find_spec("imagecorruptions"):
        return (
            "the published photographs of frost, which are part of a package: "
            "pip install --no-deps imagecorruptions"
        )
    if name == "spatter" and not importlib.util.find_spec("cv2"):
        return "OpenCV: pip install 'finetune_jax[corruptions]'"
    return ""


def jpeg(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """JPEG compression by Pillow; constant: quality."""
    del generator
    from PIL import Image

    file = io.BytesIO()
    rounded = (x * 255).round().astype(np.uint8)
    Image.fromarray(rounded).save(file, "JPEG", quality=int(row[0]))
    return np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB"), np.float32) / 255


def frost(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Adds a random part of a photograph of frost.

    Constants: weight of the image, weight of the photograph, step between the photograph's pixels.
    The published sets of 32 pixels take every fifth pixel of the photographs.
    """
    image_weight, frost_weight, step = row
    photographs = _photographs(int(step), len(x))
    photograph = photographs[generator.integers(len(photographs))]
    top, left = (generator.integers(n - len(x) + 1) for n in photograph.shape[:2])
    return image_weight * x + frost_weight * photograph[top : top + len(x), left : left + len(x)]


@functools.lru_cache(maxsize=2)
def _photographs(step: int, size: int) -> tuple[np.ndarray, ...]:
    """Returns photographs f32[h, w, 3] in [0, 1]: five of six, as the published construction."""
    from PIL import Image

    # Importing the package would need all of its dependencies, so only its folder is located.
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"frost needs {lacking('frost')}")
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    found = []
    for path in sorted(folder.glob("frost*"))[:5]:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            pixels = image.convert("RGB")
            scale = max(1, size * step / min(pixels.size))
            pixels = pixels.resize([int(np.ceil(n * scale)) for n in pixels.size])
        found.append(np.asarray(pixels, np.float32)[step // 2 :: step, step // 2 :: step] / 255)
    return tuple(found)


def spatter(generator: np.random.Generator, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Drops of water or mud.

    Constants: mean, deviation, blur and threshold of the noise that becomes the drops; strength of
    water or blur of mud; 1 for mud and 0 for water.
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
    """Returns the brightness of water, f32 in [0, 255], from the distance to the edge of a drop."""
    import cv2

    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    lit = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, _EMBOSS)
    return cv2.blur(lit, (3, 3)).astype(np.float32)
