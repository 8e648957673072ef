import math

import pytest
import torch

from lightning_bsqh.zoo.data import SineDataModule


def test_all_points_in_one_batch() -> None:
    ((x, y),) = list(SineDataModule(points=5).train_dataloader())
    assert x.dtype == y.dtype == torch.float64
    assert x.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    torch.testing.assert_close(y, torch.sin(math.pi * x))


def test_test_points_lie_between() -> None:
    ((x, _),) = list(SineDataModule(points=5).test_dataloader())
    assert x.tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_smaller_batches_keep_every_point() -> None:
    batches = list(SineDataModule(points=5, batch_size=2).train_dataloader())
    assert [len(x) for x, _ in batches] == [2, 2, 1]


@pytest.mark.parametrize(("options", "message"), [({"points": 1}, "points"), ({"batch_size": 0}, "batch_size")])
def test_refusals(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        SineDataModule(**options)
