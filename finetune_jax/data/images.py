"""Decoding and resizing of image files; an error names the file."""

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
"""File name suffixes, in lower case, of the files that count as images."""


class BadImage(UserError):
    """Raised for an image that cannot be decoded; the message begins with its path."""


def decode(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """Decodes an image file to RGB uint8[height, width, 3], turned by its EXIF orientation.

    Grayscale, palette and CMYK images become RGB without a colour profile. The high 8 of 16 bits
    are kept; grayscale of 16 bits is rounded. Transparent pixels are put on white. Of an animation,
    the first frame is decoded.

    Args:
      source: path of a file, or the content of a file.
      name: name of the content in messages; unused for a path.

    Raises:
      BadImage: the file is missing, empty, truncated, damaged or not an image, or the range of its
        pixels is unknown (floats, and integers outside of 16 bits).
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
    except Exception as error:  # plugins of Pillow raise many kinds of errors on damaged files
        raise BadImage(f"{name}: damaged image: {error or type(error).__name__}") from None


def _pixels(image: Image.Image) -> np.ndarray:
    from PIL import Image, ImageOps

    # Adobe stores CMYK JPEGs inverted, and Pillow inverts every CMYK JPEG.
    inverted = image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info
    ImageOps.exif_transpose(image, in_place=True)  # not in place, it copies upright images too
    if inverted:
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
    """Grayscale of 16 bits, scaled to uint8[height, width, 3]; Pillow would clip it at 255."""
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
    """Resizes uint8[height, width, 3] to uint8[side, side, 3] by Pillow, with antialiasing.

    Args:
      image: image of any size; an image of the right size is returned unchanged.
      side: side of the result in pixels.
      interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
      crop: share of the resized short side that the central square keeps, in (0, 1]; 0 resizes both
        sides to `side` without a crop, which changes the proportions.
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
