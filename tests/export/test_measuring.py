import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")

from lightning_bsqh.export import Measurement, measure, table
from lightning_bsqh.export.measuring import latencies


def test_counts_of_a_small_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        network[0].weight[0] = 0.0
    network.train()
    (first,) = measure([network], torch.randn(5, 1, 4, 4), seconds=0.01)
    (second,) = measure([nn.Linear(3, 3)], torch.randn(1, 3), seconds=0.01)
    assert (first.parameters, first.nonzeros, first.dense_bytes) == (47, 38, 188)
    # Five samples: 2 channels at 4 positions with 9 weights each, and 3 neurons with 8.
    assert first.multiply_adds == 5 * (2 * 4 * 9 + 3 * 8)
    assert second.multiply_adds == 9
    assert first.milliseconds > 0
    assert network.training
    with pytest.raises(ValueError, match="seconds must lie in"):
        measure([network], torch.randn(5, 1, 4, 4), seconds=0.0)
    with pytest.raises(ValueError, match="at least one network"):
        measure([], torch.randn(5, 1, 4, 4))
    with pytest.raises(ValueError, match="does not run on example_inputs"):
        measure([network], torch.randn(5, 1, 2, 2))
    with pytest.raises(TypeError, match=r"must be an nn\.Module"):
        measure([len], torch.randn(5, 1, 4, 4))


def test_table_puts_numbers_side_by_side() -> None:
    before, after = Measurement(2000, 100, 8000, 500, 4000, 2.0), Measurement(500, 100, 2000, 480, 1000, 0.5)
    text = table({"trained": before, "shrunk": after}, {"test_accuracy": {"trained": 0.5}})
    rows = {line.rsplit("  ")[0].strip(): line.split() for line in text.splitlines()}
    assert rows["parameters"][1:] == ["2,000", "500", "4.00", "x"]
    assert rows["milliseconds"][1:] == ["2.000", "0.500", "4.00", "x"]
    assert rows["test_accuracy"][1:] == ["0.5000"]
    assert len({len(line) for line in text.splitlines()[:6]}) <= 2
    assert "ratio" not in table({"trained": before})


def test_another_clock_may_count() -> None:
    now = [0.0]

    def call(seconds: float) -> None:
        now[0] += seconds

    ways = [lambda x: call(2.0), lambda x: call(0.5)]
    assert latencies(ways, (torch.ones(1),), 0.001, clock=lambda: now[0]) == [2000.0, 500.0]
