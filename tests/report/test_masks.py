import base64
import io

import pytest
import torch

from lightning_bsqh.report.bars import sparsity_bars
from lightning_bsqh.report.masks import draw_mask

Image = pytest.importorskip("PIL.Image")


def _alpha_and_index(uri: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a decoder other than ours makes of the picture: opacity and palette index of each pixel."""
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        image.load()
        index = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(image.height, image.width)
        alpha = image.convert("RGBA").getchannel("A")
        return torch.tensor(list(alpha.tobytes()), dtype=torch.uint8).view(image.height, image.width), index


def test_matrix_is_drawn_as_it_stands() -> None:
    nonzero = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = draw_mask(nonzero)
    assert (mask.width, mask.height) == (11, 7)
    alpha, _ = _alpha_and_index(mask.uri)
    assert torch.equal(alpha == 255, nonzero)


def test_kernels_are_small_pictures_with_gaps() -> None:
    nonzero = torch.rand(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = draw_mask(nonzero)
    assert (mask.width, mask.height) == (3 * 6 - 1, 4 * 3 - 1)
    alpha, index = _alpha_and_index(mask.uri)
    for f in range(4):
        for c in range(3):
            assert torch.equal(alpha[3 * f : 3 * f + 2, 6 * c : 6 * c + 5] == 255, nonzero[f, c])
    assert (index[2] == 0).all()
    assert (alpha[:, 5] == 0).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 2, 4), (9, 5)), ((3, 2, 2, 2, 2), (5, 14)), ((6, 1, 5, 5), (17, 11)), ((1, 1, 3, 3), (3, 3))],
)
def test_other_convolutions(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    mask = draw_mask(torch.ones(shape, dtype=torch.bool))
    assert (mask.width, mask.height) == size


def test_large_matrix_is_reduced_by_means() -> None:
    nonzero = torch.zeros(30, 10, dtype=torch.bool)
    nonzero[:3] = True  # all of the first block of rows
    nonzero[3, 0] = True  # one of the second
    mask = draw_mask(nonzero, largest=10)
    assert (mask.width, mask.height) == (10, 10)
    assert "mean over 3 × 1 weights" in mask.caption
    _, index = _alpha_and_index(mask.uri)
    assert (index[0] == 255).all()
    assert index[1, 0] == round(1 + 254 / 3)
    assert (index[2:] == 1).all()


def test_large_convolution_is_reduced_to_kernels_and_blocks() -> None:
    nonzero = torch.ones(50, 4, 3, 3, dtype=torch.bool)
    mask = draw_mask(nonzero, largest=20)
    assert (mask.width, mask.height) == (4, 17)  # blocks of three filters, the last smaller
    assert "mean over the 3 × 3 weights of 3 × 1 kernels" in mask.caption
    assert "weights of a kernel" in draw_mask(nonzero, largest=60).caption
    _, index = _alpha_and_index(mask.uri)
    assert (index == 255).all()


def test_almost_all_and_almost_none_are_neither() -> None:
    nonzero = torch.zeros(2, 1000, dtype=torch.bool)
    nonzero[0, 0] = nonzero[1, 1:] = True
    nonzero[1, 0] = False
    _, index = _alpha_and_index(draw_mask(nonzero, largest=2).uri)
    assert index[0, 0] == 2
    assert index[1, 0] == 254


def test_filters_of_one_channel_stand_row_by_row() -> None:
    nonzero = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    alpha, index = _alpha_and_index(draw_mask(nonzero).uri)
    for number in range(5):
        row, column = divmod(number, 3)
        assert torch.equal(alpha[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] == 255, nonzero[number, 0])
    assert (index[4:, 8:] == 0).all()  # the sixth place is empty


def test_for_loggers_on_white_and_enlarged_by_a_whole_factor() -> None:
    nonzero = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    picture = draw_mask(nonzero).on_white(100)
    assert (picture.mode, picture.size) == ("RGB", (99, 63))
    blue = torch.tensor(
        [[picture.getpixel((9 * x + 4, 9 * y + 4)) == (0, 114, 178) for x in range(11)] for y in range(7)]
    )
    assert torch.equal(blue, nonzero)


@pytest.mark.parametrize("shape", [(3,), (0, 4)])
def test_refuses_what_is_no_weight(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more dimensions and elements, got the shape"):
        draw_mask(torch.ones(shape, dtype=torch.bool))


def test_bars_are_as_long_as_the_shares() -> None:
    blue = (0, 0x72, 0xB2)
    image = sparsity_bars({"none": 0.0, "half": 0.5, "all": 1.0})
    lengths = [sum(image.getpixel((x, 20 * row + 10)) == blue for x in range(image.width)) for row in range(3)]
    assert lengths == [0, 151, 301]
    assert sparsity_bars({}).height == 20
