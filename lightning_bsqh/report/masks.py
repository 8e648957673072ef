"""Pictures of where a weight tensor is zero, as PNG in a data URI."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pictures have no more pixels than this in either direction.
LARGEST = 640

# Palette: 0 for the gap between filters, then from "all zero" to "none zero". The colours are half transparent where
# weights are zero, so that they stand on a light page as well as on a dark one.
_ZERO, _KEPT = (128, 128, 128, 56), (0, 114, 178, 255)
_GAP = 0


@dataclass(frozen=True)
class Mask:
    """The picture of one weight tensor.

    Attributes:
        uri: ``data:image/png;base64,…``
        width: Width in pixels.
        height: Height in pixels.
        caption: What rows, columns and pixels are.
    """

    uri: str
    width: int
    height: int
    caption: str


def draw_mask(nonzero: Tensor, largest: int = LARGEST) -> Mask:
    """Draws where a tensor is not zero.

    A matrix ``[rows, columns]`` is drawn as it stands. A convolution ``[filters, channels, *kernel]`` has a column
    for each filter and a row for each input channel, of small pictures of the kernels with a gap between them. What
    is too large is reduced by block means; the caption says so.

    Args:
        nonzero: Bool, ``[out, in, *kernel]``.
        largest: Largest number of pixels in either direction.

    Raises:
        ValueError: If the tensor has less than two dimensions or no element.
    """
    if nonzero.dim() < 2 or nonzero.numel() == 0:
        raise ValueError(f"nonzero must have two or more dimensions and elements, got the shape {list(nonzero.shape)}.")
    share = nonzero.detach().to(device="cpu", dtype=torch.float32)
    if share.dim() == 2:
        pixels, block = _reduce(share, largest)
        caption = "rows: outputs (dim 0), columns: inputs (dim 1)"
        if block != (1, 1):
            caption += f"; a pixel is the mean over {block[0]} × {block[1]} weights"
        return _encode(_shades(pixels), caption)
    kernels = share.flatten(2, -2) if share.dim() > 3 else share.unsqueeze(2)  # [out, in, kernel rows, kernel columns]
    filters, channels, rows, columns = kernels.shape
    caption = "columns: filters (dim 0), rows: input channels (dim 1)"
    if channels * (rows + 1) <= largest and filters * (columns + 1) <= largest:
        tiles = F.pad(_shades(kernels).to(torch.int16), (0, 1, 0, 1), value=_GAP).to(torch.uint8)
        picture = tiles.permute(1, 2, 0, 3).reshape(channels * (rows + 1), filters * (columns + 1))
        return _encode(picture[:-1, :-1], caption)
    pixels, block = _reduce(kernels.mean((2, 3)).T, largest)
    kernel = f"{rows} × {columns}"
    many = "" if block == (1, 1) else f" of {block[0]} × {block[1]} kernels"
    caption += f"; a pixel is the mean over the {kernel} weights{many or ' of a kernel'}"
    return _encode(_shades(pixels), caption)


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


def _encode(picture: Tensor, caption: str) -> Mask:
    """A PNG with a palette of 256 colours from the indices ``[height, width]``, uint8."""
    height, width = picture.shape
    entries = [(0, 0, 0, 0)] + [
        tuple(round(a + (b - a) * (index - 1) / 254) for a, b in zip(_ZERO, _KEPT, strict=True))
        for index in range(1, 256)
    ]
    filtered = F.pad(picture, (1, 0))  # a leading 0 in every row: no PNG filter
    png = b"\x89PNG\r\n\x1a\n"
    png += _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    png += _chunk(b"PLTE", bytes(value for entry in entries for value in entry[:3]))
    png += _chunk(b"tRNS", bytes(entry[3] for entry in entries))
    png += _chunk(b"IDAT", zlib.compress(bytes(filtered.flatten().tolist()), 9)) + _chunk(b"IEND", b"")
    return Mask("data:image/png;base64," + base64.b64encode(png).decode(), width, height, caption)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
