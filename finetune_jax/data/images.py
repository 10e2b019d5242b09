"""Image files to arrays: decoded right, or an error that names the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (
        ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
        ".tiff", ".webp",
    )
)  # fmt: skip
"""Of the files that are taken for images, in lower case."""


class BadImage(UserError):
    """An image that cannot be decoded; the text begins with its path."""


def decode(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """Returns an image file as uint8[height, width, 3], upright by its EXIF orientation.

    Grayscale, palette and CMYK pictures become RGB without a colour profile; of 16 bits the high 8
    are kept (gray is rounded); transparency is put on white; an animation is its first frame.

    Args:
      source: path, or content of a file.
      name: what messages call a content.

    Raises:
      BadImage: no such file, an empty, truncated or damaged one, not an image, or pixels without
        a known range (32-bit integers beyond 16 bits, floats).
    """
    from PIL import Image, UnidentifiedImageError

    file: io.BytesIO | Path
    if isinstance(source, bytes):
        file, size, name = io.BytesIO(source), len(source), name or "image"
    else:
        path, name = Path(source), str(source)
        if not path.is_file():
            raise BadImage(f"{name}: no such image file")
        file, size = path, path.stat().st_size
    if not size:
        raise BadImage(f"{name}: the file is empty (0 bytes); expected an image")
    try:
        with Image.open(file) as image:
            return _pixels(image)
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name}: not an image in a format Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{name}: refused: {error}") from None
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        raise BadImage(f"{name}: damaged image: {error or type(error).__name__}") from None


def _pixels(image: Image.Image) -> np.ndarray:
    from PIL import Image, ImageOps

    # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted.
    upside_down = image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info
    ImageOps.exif_transpose(image, in_place=True)  # else it copies pictures that are upright
    if upside_down:
        image = image.point(lambda value: 255 - value)
    if image.mode == "F":
        raise BadImage("floating-point pixels, whose range is unknown; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        return _sixteen_bits(np.asarray(image), image.info.get("transparency"))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _sixteen_bits(gray: np.ndarray, transparent: int | None) -> np.ndarray:
    """Gray of 16 bits to 8 bits by scaling, where Pillow clips at 255."""
    gray = gray.astype(np.int64)
    if gray.size and not 0 <= gray.min() <= gray.max() <= 65535:
        raise BadImage(
            f"integer pixels of {gray.min()} to {gray.max()}, whose range is unknown; expected "
            f"0 to 65535"
        )
    scaled = (gray / 257).round().astype(np.uint8)
    if transparent is not None:
        scaled[gray == transparent] = 255
    return np.repeat(scaled[..., None], 3, axis=-1)


def resize(image: np.ndarray, side: int, interpolation: str, crop: float = 0.0) -> np.ndarray:
    """Resizes uint8[height, width, 3] to uint8[side, side, 3], antialiased as Pillow does.

    Args:
      image: any size; returned as it is when it already fits.
      side: in pixels.
      interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
      crop: share of the resized short side that the central square keeps; 0 resizes both sides to
        `side` instead, whatever the proportions.
    """
    if image.shape[:2] == (side, side):
        return image
    from PIL import Image

    method = Image.Resampling[interpolation.upper()]
    height, width = image.shape[:2]
    if not crop:
        return np.asarray(Image.fromarray(image).resize((side, side), method))
    scale = round(side / crop) / min(height, width)
    height, width = max(side, round(height * scale)), max(side, round(width * scale))
    resized = np.asarray(Image.fromarray(image).resize((width, height), method))
    top, left = (height - side) // 2, (width - side) // 2
    return resized[top : top + side, left : left + side]
