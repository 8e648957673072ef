import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_bsqh import BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import SparsityMonitor
from lightning_bsqh.callbacks._weights import count_zero_groups, count_zeros, sparsity_values
from tests.callbacks.small import SmallModule, loader


def _fit(tmp_path, monitor: SparsityMonitor, model: SmallModule | None = None, **options) -> L.Trainer:
    model = model or SmallModule()
    options = {"max_epochs": 2, "log_every_n_steps": 1, **options}
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="auto" if model.own_optimizer else BSQHStrategy(Cardinality(sparsity=0.5)),
        callbacks=[monitor],
        logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, loader())
    return trainer


def _rows(tmp_path) -> list[dict[str, str]]:
    with open(tmp_path / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["sparsity/total"]]


def test_values_are_the_shares_of_exact_zeros() -> None:
    layers = {"a": [torch.tensor([[0.0, 1.0], [2.0, -0.0]]), torch.tensor([[1e-30]])], "b": [torch.ones(5, 1)]}
    assert count_zeros(layers) == {"a": (2, 5), "b": (0, 5)}
    assert sparsity_values(layers) == {
        "sparsity/total": 0.2,
        "nonzero/total": 8.0,
        "sparsity/a": 0.4,
        "sparsity/b": 0.0,
    }
    assert sparsity_values({}) == {"sparsity/total": 0.0, "nonzero/total": 0.0}


def test_logs_by_layer_and_in_all(tmp_path) -> None:
    model = SmallModule()
    trainer = _fit(tmp_path, SparsityMonitor(every_n_steps=1), model)
    rows = _rows(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(8))
    totals = [float(row["sparsity/total"]) for row in rows]
    assert totals == sorted(totals)
    last = rows[-1]
    zeros = {name: int((getattr(model, name).weight == 0).sum()) for name in ("first", "second")}
    assert zeros["first"] + zeros["second"] == 28
    assert float(last["sparsity/total"]) == 0.5
    assert float(last["nonzero/total"]) == 28.0
    assert float(last["sparsity/first"]) == pytest.approx(zeros["first"] / 32)
    assert float(last["sparsity/second"]) == pytest.approx(zeros["second"] / 24)
    assert trainer.callback_metrics["sparsity/total"] == 0.5


def test_rarely_but_at_the_end(tmp_path) -> None:
    trainer = _fit(tmp_path, SparsityMonitor(every_n_steps=3))
    assert [int(row["step"]) for row in _rows(tmp_path)] == [2, 5, 7]
    assert trainer.callback_metrics["sparsity/total"] == 0.5


def test_the_outcome_is_never_lost(tmp_path) -> None:
    trainer = _fit(tmp_path, SparsityMonitor(), max_epochs=-1, max_steps=6, log_every_n_steps=50)
    (row,) = _rows(tmp_path)
    assert int(row["step"]) == 5
    assert float(row["sparsity/total"]) == 0.5
    assert trainer.callback_metrics["nonzero/total"] == 28.0


@pytest.mark.parametrize("prog_bar", [True, False])
def test_progress_bar_shows_the_total_only(tmp_path, prog_bar: bool) -> None:
    trainer = _fit(tmp_path, SparsityMonitor(prog_bar=prog_bar))
    shown = {key for key in trainer.progress_bar_metrics if key.startswith(("sparsity/", "nonzero/"))}
    assert shown == ({"sparsity/total"} if prog_bar else set())


def test_with_another_optimizer_all_matrices_count(tmp_path) -> None:
    model = SmallModule(own_optimizer=True)
    model.first.weight.data[0] = 0.0
    model.first.weight.requires_grad_(False)
    trainer = _fit(tmp_path, SparsityMonitor(), model)
    assert trainer.callback_metrics["sparsity/first"] == pytest.approx(4 / 32)
    assert trainer.callback_metrics["sparsity/second"] == 0.0
    assert trainer.callback_metrics["nonzero/total"] == 52.0


@pytest.mark.parametrize("value", [0, -1])
def test_refuses_every_n_steps(value: int) -> None:
    with pytest.raises(ValueError, match="every_n_steps"):
        SparsityMonitor(every_n_steps=value)


def test_filters_and_rows() -> None:
    filters, matrix, bias = torch.ones(4, 2, 3, 3), torch.ones(5, 6), torch.zeros(7)
    filters[1], filters[2], filters[3, 0] = 0.0, -0.0, 0.0
    matrix[:, 1:] = 0.0
    matrix[3] = 0.0
    assert count_zero_groups({"a": [filters, bias], "b": [matrix, matrix.clone()]}) == {
        "filters": (2, 4),
        "rows": (2, 10),
    }
    assert count_zero_groups({"a": [bias]}) == count_zero_groups({}) == {}
