"""Decoding and resizing of image files; an error names the file."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import urllib.parse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.progress import say
from finetune_jax.tables import shown

if TYPE_CHECKING:
    from PIL import Image

# Modules that read these files, by suffix; the extra "heif" installs the last one.
_OPTIONAL = {
    ".avif": ("PIL._avif", "pillow_heif"),
    ".heic": ("pillow_heif",),
    ".heif": ("pillow_heif",),
}


def _readable() -> frozenset[str]:
    return frozenset(s for s, modules in _OPTIONAL.items() if any(map(find_spec, modules)))


SUFFIXES = _readable() | {
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif"),
    *(".tiff", ".webp"),
}
"""File name suffixes, in lower case, of the files that count as images.

``.avif``, ``.heic`` and ``.heif`` are among them where a library that reads them is installed.
"""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats by their names in Pillow; no other is read, except AVIF and HEIF if they are installed.

A file's name does not decide its format, and some formats of Pillow start other programs: a
PostScript file is drawn by Ghostscript.
"""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
"""Filters of Pillow by which images are resized."""

MAX_PIXELS = 64_000_000
"""Default of ``data.max_pixels``: pixels of the largest image that is decoded."""

LARGEST_RESIZED = 16
"""An image that is resized to more than 16 times the pixels of its crop is cropped before."""


_DARK = 4095  # largest value of 12 bits


class BadImage(UserError):
    """Raised for an image that cannot be decoded; the message begins with its path."""


def missing_reader(suffix: str) -> str:
    """What to install for files of this suffix, as the end of a message; else ""."""
    if suffix.lower() not in _OPTIONAL.keys() - SUFFIXES:
        return ""
    return f"; {suffix} files need pillow-heif: pip install 'finetune_jax[heif]'"


def path_hint(path: str) -> str:
    """What may be wrong with the path of a missing image, as the end of a message; else ""."""
    if "\\" in path:
        return "; its path has backslashes: write / between folders"
    if re.search(r"\bhttps?:/", path):
        return "; images are read from files, not from addresses: download them first"
    if "%" in path and os.path.exists(plain := urllib.parse.unquote(path)):
        return f"; there is {plain}: write names as they are, and not as in addresses, with %20"
    for suffix in sorted(SUFFIXES) if "\0" not in path else ():
        for found in (path + suffix, path + suffix.upper()):
            if os.path.exists(found):
                return f"; there is {found}: write names with their suffix"
    return ""


def nearby(path: Path) -> str:
    """Where the missing image of a table may lie, as the end of a message; else "".

    The file has a name in another case, or lies in a folder beside it.
    """
    try:
        return _nearby(path)
    except (OSError, ValueError):  # a name that no file can have, or a folder that is not readable
        return ""


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    folders = []
    for entry in path.parent.iterdir():
        if entry.name.casefold() == path.name.casefold():
            return f"; there is {entry}: write names in their case"
        if entry.is_dir():
            folders.append(entry)
    for folder in sorted(folders):
        for name in (path.name, *(path.name + suffix for suffix in sorted(SUFFIXES))):
            if (folder / name).exists():
                return f"; there is {folder / name}: write {folder.name}/{name} in the table"
    return ""


@functools.cache
def _formats() -> tuple[str, ...]:
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return (*FORMATS, "AVIF", "HEIF")
    return (*FORMATS, "AVIF") if ".avif" in SUFFIXES else FORMATS


def decode(source: str | Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file to RGB uint8[height, width, 3], turned by its EXIF orientation.

    Grayscale, palette and CMYK images become RGB without a colour profile. The high 8 of 16 bits
    are kept; grayscale of 16 bits is rounded. Transparent pixels are put on white. Of an animation,
    the first frame is decoded.

    Args:
      source: path of a file, or the content of a file.
      name: name of the content in messages; unused for a path.
      max_pixels: number of pixels (width times height) of the largest image that is decoded; a
        larger one is refused before its pixels are read.

    Raises:
      BadImage: the file is missing, empty, truncated, damaged, too large or not an image in one of
        `FORMATS`, or the range of its pixels is unknown (floats, and integers outside of 16 bits).
    """
    with _opened(source, name, max_pixels) as image:
        return _pixels(image)


def stored_values(
    source: str | Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Returns the stored values of a mask: in a palette image a class and not a colour.

    Args:
      source, name, max_pixels: as of `decode`.

    Returns:
      integers[height, width], or [height, width, channels].

    Raises:
      BadImage: as `decode`.
    """
    with _opened(source, name, max_pixels) as image:
        return np.array(image)


def require_size(content: bytes, name: str, max_pixels: int) -> None:
    """Checks an image file by its header, for a caller that decodes the image with another library.

    Args:
      content, name, max_pixels: as of `decode`.

    Raises:
      BadImage: as `decode`, but a damaged image may pass.
    """
    with _opened(content, name, max_pixels):
        pass


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Yields an opened image whose size was checked; errors of the block become `BadImage`."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    # Colour profiles and texts beside the pixels, which are not read, may be larger than 1 MiB.
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MOST_BESIDE_PIXELS)
    file: io.BytesIO | Path
    if isinstance(source, bytes):
        file, size, name = io.BytesIO(source), len(source), name or "image"
    else:
        path, name = Path(source), str(source)
        if not os.path.isfile(name):  # also false for a name that no file can have
            raise BadImage(f"{name}: no such image file{path_hint(name)}")
        file, size = path, path.stat().st_size
    if not size:
        raise BadImage(f"{name}: the file is empty (0 bytes); expected an image")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, which is lower than ours here
    try:
        with Image.open(file, formats=_formats()) as image:
            _require_size(image, max_pixels)
            if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                _say_pages(name)
            yield image
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise BadImage(
            f"{name}: not an image in a format that is read here: {', '.join(_formats())}"
            f"{missing_reader(Path(name).suffix)}{_content(file)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{name}: more pixels than the {max_pixels} of data.max_pixels ({error}); make the "
            f"image smaller, or allow larger images there"
        ) from None
    except Exception as error:  # plugins of Pillow raise many kinds of errors on damaged files
        raise BadImage(f"{name}: damaged image: {error or type(error).__name__}") from None


# Bytes of one chunk of a PNG that has no pixels, unpacked.
_MOST_BESIDE_PIXELS = 2**26
# First bytes of what downloads leave in place of an image.
_CONTENTS = (
    (b"<!doctype", "a web page: the download went to a page instead of the file"),
    (b"<html", "a web page: the download went to a page instead of the file"),
    (b"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull' to get the file itself"),
)


def _content(file: io.BytesIO | Path) -> str:
    """The end of a message: what a file is that is no image; "" if that is not known."""
    try:
        with file if isinstance(file, io.BytesIO) else file.open("rb") as opened:
            opened.seek(0)
            start = opened.read(64).lstrip().lower()
    except OSError:
        return ""
    what = next((what for first, what in _CONTENTS if start.startswith(first)), "")
    return f"; its content is {what}" if what else ""


_said_pages: list[str] = []


def _say_pages(name: str) -> None:
    """Says for the first TIFF with several pages of a process that only its first page is read."""
    if not _said_pages:
        _said_pages.append(name)
        say(shown(f"{name}: of a TIFF with several pages, only the first page is read"))


def _require_size(image: Image.Image, max_pixels: int) -> None:
    """Raises BadImage if the image, or a tile of a TIFF, has too many pixels."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    # A tile may be declared larger than the image, and is decoded whole.
    tile = [tags.get(tag, 0) for tag in (322, 323)]
    for what, (x, y) in (("it", (width, height)), ("a tile of it", tile)):
        if isinstance(x, int) and isinstance(y, int) and x * y > max_pixels:
            raise BadImage(
                f"{what} has {x} x {y} pixels, more than the {max_pixels} of data.max_pixels; "
                f"make the image smaller, or allow larger images there"
            )


def _pixels(image: Image.Image) -> np.ndarray:
    from PIL import Image, ImageOps

    # Adobe stores CMYK JPEGs inverted, and Pillow inverts every CMYK JPEG.
    inverted = image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info
    # Without in_place, Pillow also copies upright images.
    ImageOps.exif_transpose(image, in_place=True)
    if inverted:
        image = image.point(lambda value: 255 - value)
    if image.mode == "F":
        raise BadImage("floating-point pixels, whose range is unknown; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        where = str(getattr(image, "filename", "")) or "an image"
        return _sixteen_bits(np.asarray(image), image.info.get("transparency"), where)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _sixteen_bits(gray: np.ndarray, transparent: int | None, where: str) -> np.ndarray:
    """Grayscale of 16 bits, scaled to uint8[height, width, 3]; Pillow would clip it at 255."""
    if gray.size and not 0 <= gray.min() <= gray.max() <= 65535:
        raise BadImage(
            f"integer pixels of {gray.min()} to {gray.max()}, whose range is unknown; expected "
            f"0 to 65535"
        )
    if gray.size and gray.max() <= _DARK:
        _say_dark(int(gray.max()), where)
    scaled = _eight_bits()[gray]
    if transparent is not None:
        scaled[gray == transparent] = 255
    return np.repeat(scaled[..., None], 3, axis=-1)


_said_dark: list[str] = []


def _say_dark(largest: int, where: str) -> None:
    """Says once in a process that an image is almost black; cameras store 12 bits in 16."""
    if not _said_dark:
        _said_dark.append(where)
        say(
            shown(
                f"{where}: pixels of 16 bits have values up to {largest} only, so the image is "
                f"read as almost black (65535 is white); other images may be so too"
            )
        )


@functools.cache
def _eight_bits() -> np.ndarray:
    """uint8[65536]: the nearest value of 8 bits to each value of 16 bits."""
    return (np.arange(65536) / 257).round().astype(np.uint8)


def resize(image: np.ndarray, side: int, interpolation: str, crop: float = 0.0) -> np.ndarray:
    """Resizes uint8[height, width, 3] to uint8[side, side, 3] by Pillow, with antialiasing.

    Args:
      image: image of any size; an image of the right size is returned unchanged.
      side: side of the result in pixels.
      interpolation: one of `INTERPOLATIONS`.
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
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(image)
    if height * width > LARGEST_RESIZED * side**2:
        # A strip of 1 x 3000 pixels would become an image of gigabytes, of which a square is kept:
        # the short side is resized first, and of the long side only what is kept.
        w, h = picture.size
        if height > width:
            kept = (0.0, top * h / height, float(width), (top + side) * h / height)
            picture = picture.resize((width, h), method).resize((width, side), method, kept)
            top = 0
        else:
            kept = (left * w / width, 0.0, (left + side) * w / width, float(height))
            picture = picture.resize((w, height), method).resize((side, height), method, kept)
            left = 0
    else:
        picture = picture.resize((width, height), method)
    return np.asarray(picture)[top : top + side, left : left + side]
