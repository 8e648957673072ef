"""No layer is emptied by rounding without a word."""

import pytest
from torch import nn

from lightning_bsqh import BSQHStrategy, Cardinality
from tests.cases.helpers import Net as Base
from tests.cases.helpers import fit, loader, noted


class Narrow(Base):
    """Its last layer has eight weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def loss(self, batch):
        return nn.functional.mse_loss(self(batch[0])[:, 0], batch[0][:, 0])


class Filters(Base):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        )


@pytest.mark.parametrize(
    ("make", "regularizer"),
    [
        (Narrow, Cardinality(0.97, scope="layer")),
        (Narrow, Cardinality(0.97, ramp=(0.0, 0.0), scope="layer")),
        (Narrow, {"net.0": Cardinality(0.9), "net.2": Cardinality(0.95, groups="output", scope="layer")}),
        (Filters, {"net.1": Cardinality(0.9, groups="output"), "net.3": Cardinality(0.9, groups="output")}),
    ],
    ids=["weights", "at-once", "rows", "filters"],
)
def test_per_layer(make, regularizer):
    """Every layer keeps a weight, or an error or a warning names the layer."""
    module = make()
    with noted() as warnings:
        try:
            fit(module, BSQHStrategy(regularizer), loader(), max_epochs=6)
        except ValueError as error:
            assert "net." in str(error)
            return
    emptied = [n.removesuffix(".weight") for n, p in module.named_parameters() if p.dim() > 1 and not p.any()]
    assert all(any(name in text for text in warnings) for name in emptied), f"emptied: {emptied}"
