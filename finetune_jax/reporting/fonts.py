"""Which text a figure can draw with the font of matplotlib, and replacements for other text.

Figures use DejaVu Sans alone, so that equal figures are equal files on all machines. The font has
Latin, Greek, Cyrillic, Arabic and Hebrew letters and many symbols, but no Chinese, Japanese or
Korean characters and few emoji. Instead of a missing letter, a figure of classes has the number of
the
class, which the table beside the figure explains, and any other label shows an escape such as
``\\u732b``. Pages are drawn by the browser, which has more fonts.
"""

from __future__ import annotations

import functools
import unicodedata

FAMILY = "DejaVu Sans"
"""Font of all figures."""

_SHAPES = (3, 11)
"""First version of matplotlib that joins letters, and writes from the right to the left."""


def drawable(text: str) -> bool:
    """Whether a figure can draw a text in one line."""
    return drawn(text) == unicodedata.normalize("NFC", text)


def drawn(text: str) -> str:
    """The text, in which escapes stand for the characters that a figure cannot draw."""
    known = _characters()
    return "".join(
        c if ord(c) in known else c.encode("unicode_escape").decode()
        for c in unicodedata.normalize("NFC", text)
    )


def reads_from_the_right(text: str) -> bool:
    """Whether a text has letters that are written from the right to the left."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)


@functools.cache
def _characters() -> frozenset[int]:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    found = FT2Font(font_manager.findfont(FAMILY)).get_charmap()
    joins = matplotlib.__version_info__[:2] >= _SHAPES
    return frozenset(c for c in found if joins or not reads_from_the_right(chr(c)))
