"""Pictures of a network's weights: bars of zeros and masks of convolution filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# Grey levels of a mask.
_KEPT, _LINE, _ZERO = 255, 128, 0
#: Masks are enlarged to about this many pixels.
_MASK_SIZE = 512

# Sizes of the bars' parts in pixels; colours as in the training's picture.
_ROW, _LABEL, _BAR, _NUMBER = 20, 220, 300, 60
_TEXT, _FULL, _EMPTY = "#000000", "#0072B2", "#E6E6E6"


def labels(names: Sequence[str], length: int = 32) -> dict[str, str]:
    """Names that fit into a picture, each different from all others, by full names.

    The end of a name tells more than its beginning, so it is the beginning that is left out. Names that would be the
    same then get a number.

    Args:
        names: Different names.
        length: How many characters a label may have, at least 12.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        label = name if len(name) <= length else "..." + name[3 - length :]
        count = 1
        while label in taken:
            count += 1
            mark = f" ({count})"
            label = "..." + name[3 + len(mark) - length :] + mark
        taken.add(label)
        result[name] = label
    return result


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


def filter_mask(weight: Tensor, max_filters: int = 64) -> Tensor:
    """Which weights of a convolution are left: white those that are, black those that are zero, grey lines between.

    Args:
        weight: ``[A, B, *kernel]`` with a kernel of one or more dimensions.
        max_filters: At most so many slices along each of the first two dimensions are shown, the first ones.

    Returns:
        uint8 ``[H, W]``. A row of kernels for each slice along dim 0 (a filter; of a transposed convolution an input
        channel), a column for each along dim 1; if there is but one column, its kernels are laid out row by row in
        a square instead. Of a kernel with three dimensions the first two are one above the
        other. Small ones are enlarged by a whole factor.
    """
    kept = (weight.detach()[:max_filters, :max_filters] != 0).cpu()
    rows, columns, width = kept.shape[0], kept.shape[1], kept.shape[-1]
    kernels = torch.where(kept, _KEPT, _ZERO).to(torch.uint8).reshape(rows, columns, -1, width)
    height = kernels.shape[2]
    if columns == 1:
        side = math.isqrt(rows - 1) + 1
        square = torch.full((side * side, 1, height, width), _LINE, dtype=torch.uint8)
        square[:rows] = kernels
        # The last rows of the square may be empty.
        rows, columns = -(-rows // side), side
        kernels = square[: rows * columns].reshape(rows, columns, height, width)
    framed = torch.full((rows, columns, height + 1, width + 1), _LINE, dtype=torch.uint8)
    framed[:, :, 1:, 1:] = kernels
    picture = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), _LINE, dtype=torch.uint8)
    picture[:-1, :-1] = framed.permute(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
    factor = max(_MASK_SIZE // max(picture.shape), 1)
    return picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
