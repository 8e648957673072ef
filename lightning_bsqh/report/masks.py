"""Pictures of where weights are zero: the only place where masks are drawn, for the report and for loggers."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pictures have no more pixels than this in either direction.
LARGEST = 640

# Palette: 0 for the gap between filters, then from "all zero" to "none zero". The colors are half transparent where
# weights are zero, so that they stand on a light page as well as on a dark one.
_ZERO, _KEPT = (128, 128, 128, 56), (0, 114, 178, 255)
_GAP = 0


@dataclass(frozen=True)
class Mask:
    """The picture of one weight tensor.

    Attributes:
        image: With a palette of half transparent colors.
        caption: What rows, columns and pixels are.
    """

    image: Image
    caption: str

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.image.width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.image.height

    @property
    def uri(self) -> str:
        """The picture as ``data:image/png;base64,…``."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def on_white(self, size: int = 512) -> Image:
        """The picture without transparency, for loggers; enlarged by a whole factor to about ``size`` pixels."""
        from PIL import Image

        shown = Image.new("RGBA", self.image.size, "white")
        shown.alpha_composite(self.image.convert("RGBA"))
        factor = max(size // max(self.image.size), 1)
        return shown.convert("RGB").resize((factor * self.width, factor * self.height), Image.Resampling.NEAREST)


def draw_mask(nonzero: Tensor, largest: int = LARGEST) -> Mask:
    """Draws where a tensor is not zero: blue where it is not, gray where it is.

    A matrix ``[rows, columns]`` is drawn as it stands. A convolution ``[filters, channels, *kernel]`` has a row for
    each filter and a column for each input channel, of small pictures of the kernels with a gap between them; where
    there is but one channel, the filters are laid out row by row in a square. Of a kernel with three dimensions the
    first two are one above the other. What is too large is reduced by block means; the caption says so.

    Args:
        nonzero: Bool, ``[out, in, *kernel]``.
        largest: Largest number of pixels in either direction.

    Raises:
        ModuleNotFoundError: If pillow is not installed.
        ValueError: If the tensor has less than two dimensions or no element.
    """
    if nonzero.dim() < 2 or nonzero.numel() == 0:
        raise ValueError(f"nonzero must have two or more dimensions and elements, got the shape {list(nonzero.shape)}.")
    share = nonzero.detach().to(device="cpu", dtype=torch.float32)
    if share.dim() == 2:
        pixels, block = _reduce(share, largest)
        many = "" if block == (1, 1) else f"; a pixel is the mean over {block[0]} × {block[1]} weights"
        return Mask(_image(_shades(pixels)), f"rows: outputs (dim 0), columns: inputs (dim 1){many}")
    return _kernels(share.flatten(2, -2) if share.dim() > 3 else share.unsqueeze(2), largest)


def _kernels(kernels: Tensor, largest: int) -> Mask:
    """The picture of ``[filters, channels, kernel rows, kernel columns]``."""
    filters, channels, rows, columns = kernels.shape
    across = math.isqrt(filters - 1) + 1 if channels == 1 else channels
    down = -(-filters // across) if channels == 1 else filters
    caption = "rows: filters (dim 0), columns: input channels (dim 1)"
    if channels == 1:
        caption = "filters (dim 0) row by row; one input channel"
    if down * (rows + 1) <= largest and across * (columns + 1) <= largest:
        tiles = F.pad(_shades(kernels).to(torch.int16), (0, 1, 0, 1), value=_GAP).flatten(0, 1)
        # The last row of a square may not be full.
        tiles = F.pad(tiles, (0, 0, 0, 0, 0, down * across - len(tiles)), value=_GAP)
        grid = tiles.view(down, across, rows + 1, columns + 1).permute(0, 2, 1, 3)
        return Mask(_image(grid.reshape(down * (rows + 1), across * (columns + 1))[:-1, :-1]), caption)
    pixels, block = _reduce(kernels.mean((2, 3)), largest)
    many = " of a kernel" if block == (1, 1) else f" of {block[0]} × {block[1]} kernels"
    caption = "rows: filters (dim 0), columns: input channels (dim 1)"
    return Mask(_image(_shades(pixels)), f"{caption}; a pixel is the mean over the {rows} × {columns} weights{many}")


def _reduce(share: Tensor, largest: int) -> tuple[Tensor, tuple[int, int]]:
    """Means over blocks, so that no side is longer than ``largest``, and the blocks' size; the last may be smaller."""
    rows, columns = share.shape
    block = (-(-rows // largest), -(-columns // largest))
    if block == (1, 1):
        return share, block
    pooled = F.avg_pool2d(share[None], block, ceil_mode=True, count_include_pad=False)
    return pooled[0], block


def _shades(share: Tensor) -> Tensor:
    """Palette indices 1 (all zero) to 255 (none zero). Only these two ends mean exactly all and exactly none."""
    shades = (1 + 254 * share).round().clamp(2, 254)
    shades[share == 0] = 1
    shades[share == 1] = 255
    return shades.to(torch.uint8)


def _image(picture: Tensor) -> Image:
    """A picture with the palette from its indices ``[height, width]``."""
    from PIL import Image

    height, width = picture.shape
    image = Image.frombytes("P", (width, height), picture.to(torch.uint8).contiguous().numpy().tobytes())
    palette = [0, 0, 0, 0]
    for index in range(1, 256):
        palette += [round(a + (b - a) * (index - 1) / 254) for a, b in zip(_ZERO, _KEPT, strict=True)]
    image.putpalette(palette, rawmode="RGBA")
    return image
