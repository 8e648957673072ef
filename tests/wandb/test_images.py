import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsqh.wandb.images import filter_mask, labels, sparsity_bars


@given(st.lists(st.text("ab.", min_size=1, max_size=40), unique=True, max_size=20), st.integers(12, 30))
def test_labels_fit_and_differ(names: list[str], length: int) -> None:
    result = labels(names, length)
    assert list(result) == names
    assert len(set(result.values())) == len(names)
    assert all(len(label) <= length for label in result.values())


def test_labels_that_would_collide_get_a_number() -> None:
    first, second = labels([f"encoder.{i}.attention.projection.output" for i in (1, 2)], 20).values()
    assert first == "...projection.output"
    assert second == "...ection.output (2)"


def test_a_mask_shows_each_weight_where_it_is() -> None:
    weight = torch.zeros(2, 3, 2, 4)
    weight[1, 2, 0, 3] = -0.5
    picture = filter_mask(weight)
    height, width = 2 * (2 + 1) + 1, 3 * (4 + 1) + 1
    factor = 512 // width
    assert picture.shape == (height * factor, width * factor)
    small = picture[::factor, ::factor]
    assert (small == 255).nonzero().tolist() == [[3 + 1, 10 + 4]]
    assert int((small == 0).sum()) == 47
    assert small[:, 0].unique().tolist() == small[0].unique().tolist() == [128]


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [((5, 2, 3), (5, 2, 1, 3)), ((2, 2, 2, 3, 4), (2, 2, 6, 4)), ((100, 90, 1, 1), (64, 64, 1, 1)),
     ((6, 1, 5, 5), (2, 3, 5, 5)), ((1, 1, 3, 3), (1, 1, 3, 3))],
)  # fmt: skip
def test_masks_of_all_kinds_of_kernels(shape: tuple[int, ...], kernels: tuple[int, ...]) -> None:
    rows, columns, height, width = kernels
    picture = filter_mask(torch.ones(shape))
    factor = max(512 // max(rows * (height + 1) + 1, columns * (width + 1) + 1), 1)
    assert picture.shape == ((rows * (height + 1) + 1) * factor, (columns * (width + 1) + 1) * factor)
    assert int((picture == 255).sum()) == rows * columns * height * width * factor**2
    assert not (picture == 0).any()


def test_bars_are_as_long_as_the_shares() -> None:
    pytest.importorskip("PIL")
    blue = (0, 0x72, 0xB2)
    image = sparsity_bars({"none": 0.0, "half": 0.5, "all": 1.0})
    lengths = [sum(image.getpixel((x, 20 * row + 10)) == blue for x in range(image.width)) for row in range(3)]
    assert lengths == [0, 151, 301]
    assert sparsity_bars({}).height == 20
