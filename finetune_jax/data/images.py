"""Image files to arrays: decoded right, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune_jax.errors import UserError


def decode(path: str | Path) -> np.ndarray:
    """Returns an image file as uint8[height, width, 3], upright by its EXIF orientation.

    Grayscale, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency is put on white.

    Raises:
      UserError: no such file, an empty, truncated or damaged one, or not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty (0 bytes); expected an image")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                # Pillow clips 16-bit values at 255 instead of scaling them.
                pixels = (np.asarray(image).astype(np.float64) / 257).round()
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image in a format Pillow reads") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged image: {error}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: refused: {error}") from None


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
