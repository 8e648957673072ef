"""What trainings of this package leave becomes smaller where it can, and gives the same."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy, Cardinality, GroupL0, Regularizer
from lightning_bsqh.export import shrink, shrink_report
from lightning_bsqh.zoo import ImageClassifier, SmallLeNet


def trained(make_trainer, regularizer: Regularizer) -> ImageClassifier:
    images, labels = torch.rand(128, 1, 8, 8), torch.randint(0, 10, (128,))
    module = ImageClassifier(SmallLeNet())
    strategy = BSQHStrategy(regularizer=regularizer)
    make_trainer(strategy, max_epochs=2).fit(module, DataLoader(TensorDataset(images, labels), batch_size=16))
    return module.eval()


@pytest.mark.parametrize(
    ("regularizer", "smaller"),
    [
        (Cardinality(sparsity=0.5, groups="output", ramp=(0.0, 0.5)), True),
        (GroupL0(0.3), True),
        (Cardinality(sparsity=0.9, ramp=(0.0, 0.5)), False),
    ],
    ids=["groups", "GroupL0", "unstructured"],
)
def test_what_a_training_leaves(make_trainer, regularizer: Regularizer, smaller: bool) -> None:
    module = trained(make_trainer, regularizer)
    weights = [p for p in module.parameters() if p.dim() > 1]
    assert sum(int((w == 0).sum()) for w in weights) > 0
    images = torch.rand(3, 1, 8, 8)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model, x = module.to(dtype), images.to(dtype)
        small = shrink(model, x)
        assert torch.allclose(small(x), model(x), rtol=0, atol=tolerance)
        before, after = shrink_report(small).parameters
        assert after < before or not smaller
