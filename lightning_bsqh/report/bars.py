"""A picture of the zeros of all layers, for loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Sizes of the bars' parts in pixels; colors as in the report's curves.
_ROW, _LABEL, _BAR, _NUMBER = 20, 220, 300, 60
_TEXT, _FULL, _EMPTY = "#000000", "#0072B2", "#E6E6E6"


def sparsity_bars(shares: Mapping[str, float]) -> Image:
    """A bar for each layer, as long as its share of zeros.

    Args:
        shares: Shares in [0, 1] by what is written beside the bar.

    Raises:
        ModuleNotFoundError: If pillow is not installed.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_LABEL + _BAR + _NUMBER, _ROW * max(len(shares), 1)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, (label, share) in enumerate(shares.items()):
        top, bottom = row * _ROW + 3, (row + 1) * _ROW - 3
        draw.text((4, top), label, fill=_TEXT, font=font)
        draw.rectangle((_LABEL, top, _LABEL + _BAR, bottom), fill=_EMPTY)
        if share > 0.0:
            draw.rectangle((_LABEL, top, _LABEL + round(share * _BAR), bottom), fill=_FULL)
        draw.text((_LABEL + _BAR + 6, top), f"{100.0 * share:.1f} %", fill=_TEXT, font=font)
    return image
