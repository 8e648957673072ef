"""Every key of method §8 at exactly the right steps, and equal to a recomputation from weights and batches."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_bsqh import L0, BSQHOptimizer, BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import BSQHMonitor, HamiltonianMonitor, SparsityMonitor
from tests.callbacks.small import SmallModule, loader

LAYERS = ("first", "second")
KEYS = {
    *(f"bsqh/{k}" for k in ("epsilon", "objective", "loss_decrease", "tau", "trials", "accepted", "skipped")),
    *(f"{k}/{n}" for k in ("hamiltonian", "pmp_residual", "sparsity") for n in ("total", *LAYERS)),
    *(f"augmented_hamiltonian/gain/{n}" for n in LAYERS),
    "nonzero/total",
}


class Saved(L.Callback):
    """Keeps weights, batch, metric and report of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps.append({"before": copy.deepcopy(module.state_dict()), "batch": batch})

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        assert isinstance(optimizer, BSQHOptimizer)
        self.steps[-1] |= {
            "after": copy.deepcopy(module.state_dict()),
            "metric": {name: copy.copy(d) for name, d in optimizer.metric_weights().items()},
            "report": optimizer.last_step,
        }


def fit(monitor: L.Callback, *callbacks: L.Callback, steps: int = 200, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*callbacks, monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision="64-true",
        **{"strategy": BSQHStrategy(L0(1e-4)), "logger": False, **options},
    )
    trainer.fit(SmallModule(own_optimizer=options.get("strategy") == "auto"), loader())
    return trainer


def rows(folder: Path, key: str) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["step"]), {}).update({k: v for k, v in row.items() if v})
    return {step: values for step, values in found.items() if key in values}


def test_every_key_at_every_step_agrees_with_a_recomputation(tmp_path: Path) -> None:
    saved = Saved()
    # With an average the gain is that of another K, which tests/test_twin.py looks at.
    strategy = BSQHStrategy(L0(1e-4), averaging=0.0)
    fit(BSQHMonitor(every_n_steps=1), saved, logger=CSVLogger(tmp_path, name="", version=""), strategy=strategy)
    found = rows(tmp_path, "hamiltonian/total")
    assert sorted(found) == list(range(200))
    rho = 1e-4
    for number, step in enumerate(saved.steps):
        row = {key: float(value) for key, value in found[number].items()}
        assert row.keys() >= KEYS
        assert all(math.isfinite(value) for value in row.values())
        network = SmallModule().double()
        network.load_state_dict(step["before"])
        x, y = step["batch"]
        loss = F.cross_entropy(network.second(F.relu(network.first(x.double()))), y)
        names = [name for name, _ in network.named_parameters()]
        gradients = dict(zip(names, torch.autograd.grad(loss, list(network.parameters())), strict=True))
        report = step["report"]
        totals = {"hamiltonian": 0.0, "pmp_residual": 0.0}
        for layer in LAYERS:
            h = residual = gain = 0.0
            for short in ("weight", "bias"):
                name = f"{layer}.{short}"
                w, d, g = step["before"][name], step["metric"][name], -gradients[name]
                counted = rho if short == "weight" else 0.0

                def k(u: Tensor, parts: Any = (w, d, g, counted, report.epsilon)) -> Tensor:
                    w, d, g, counted, epsilon = parts
                    return (g * (u - w) - epsilon * d * (u - w) ** 2 - counted * (u != 0).double()).sum()

                h += float((g * w).sum()) - counted * int(torch.count_nonzero(w))
                z = w + g / (2 * report.epsilon * d)
                best = torch.where(report.epsilon * d * z.square() > counted, z, 0.0) if counted else z
                residual += float(k(best) - k(w))
                gain += float(k(step["after"][name]) - k(w))
            assert row[f"hamiltonian/{layer}"] == pytest.approx(h, rel=1e-9, abs=1e-12)
            if report.accepted:
                assert row[f"augmented_hamiltonian/gain/{layer}"] == pytest.approx(gain, rel=1e-7, abs=1e-12)
                assert gain >= -1e-12
            if report.trials == 1:
                assert row[f"pmp_residual/{layer}"] == pytest.approx(residual, rel=1e-7, abs=1e-12)
            weights = step["after"][f"{layer}.weight"]
            assert row[f"sparsity/{layer}"] == pytest.approx(1 - int(torch.count_nonzero(weights)) / weights.numel())
            totals["hamiltonian"] += row[f"hamiltonian/{layer}"]
            totals["pmp_residual"] += row[f"pmp_residual/{layer}"]
        for key, total in totals.items():
            assert row[f"{key}/total"] == pytest.approx(total)
        assert row["bsqh/epsilon"] == pytest.approx(report.epsilon)
        assert row["bsqh/objective"] == pytest.approx(report.objective_after)
        assert row["bsqh/promised_decrease"] <= row["bsqh/loss_decrease"] + 1e-15
        before = {n: step["before"][f"{n}.weight"] != 0 for n in LAYERS}
        after = {n: step["after"][f"{n}.weight"] != 0 for n in LAYERS}
        assert row["support/entered"] == sum(int((after[n] & ~before[n]).sum()) for n in LAYERS)
        assert row["support/left"] == sum(int((before[n] & ~after[n]).sum()) for n in LAYERS)


def test_exactly_every_tenth_step_whatever_the_trainer_logs(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / name, name="", version="") for name in "ab"]
    fit(BSQHMonitor(every_n_steps=10), steps=35, logger=loggers, log_every_n_steps=7)
    for name in "ab":
        for key in ("hamiltonian/total", "bsqh/epsilon"):
            assert sorted(rows(tmp_path / name, key)) == [9, 19, 29]
        # And the outcome of the training.
        assert sorted(rows(tmp_path / name, "sparsity/total")) == [9, 19, 29, 34]


def test_none_follows_the_trainer(tmp_path: Path) -> None:
    fit(BSQHMonitor(None), steps=21, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=7)
    assert sorted(rows(tmp_path, "hamiltonian/total")) == sorted(rows(tmp_path, "bsqh/epsilon")) == [6, 13, 20]


def test_it_changes_nothing_of_the_training() -> None:
    ends = []
    for callbacks in ([], [BSQHMonitor(every_n_steps=2)]):
        saved = Saved()
        fit(saved, *callbacks, steps=30, strategy=BSQHStrategy(Cardinality(0.5)))
        ends.append(saved.steps[-1]["after"])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_totals_of_a_coupled_regularizer_are_not_negative(tmp_path: Path) -> None:
    saved = Saved()
    strategy = BSQHStrategy(Cardinality(0.5, interval=5))
    fit(BSQHMonitor(1), saved, steps=40, strategy=strategy, logger=CSVLogger(tmp_path, name="", version=""))
    found = rows(tmp_path, "pmp_residual/total")
    for number, step in enumerate(saved.steps):
        if not step["report"].tightened:
            assert float(found[number]["pmp_residual/total"]) >= -1e-12


def test_full_batch_mode_measures_iterations(tmp_path: Path) -> None:
    strategy = BSQHStrategy(L0(1e-4), batch_mode="full")
    logger = CSVLogger(tmp_path, name="", version="")
    fit(HamiltonianMonitor(2), steps=24, strategy=strategy, logger=logger)
    # Four batches are one iteration; a value stands at the last of them.
    assert sorted(rows(tmp_path, "hamiltonian/total")) == [7, 15, 23]


def test_tensorboard_and_no_logger(tmp_path: Path) -> None:
    fit(BSQHMonitor(5), steps=10, logger=TensorBoardLogger(tmp_path))
    assert list(tmp_path.rglob("events*"))
    trainer = fit(BSQHMonitor(5), steps=10)
    # Other callbacks are given what is of the whole network.
    assert trainer.callback_metrics.keys() >= {key for key in KEYS if key.startswith("bsqh/") or "total" in key}


def test_multiply_adds_count_positions() -> None:
    class Convolutional(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, bias=False)
            self.fc = nn.Linear(2 * 36, 3, bias=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.fc(self.conv(batch[0]).flatten(1)), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Convolutional()
    with torch.no_grad():
        module.conv.weight[0] = 0.0
        module.fc.weight[:, :36] = 0.0
        module.fc.weight[0] = 0.0
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(6, 1, 8, 8), torch.randint(3, (6,))), batch_size=3
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=[SparsityMonitor(1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    # 9 weights at 36 positions and 2 · 36 weights at one are left, of 18 · 36 and 3 · 72.
    assert trainer.callback_metrics["multiply_adds/share"] == pytest.approx((9 * 36 + 72) / (18 * 36 + 216))
    assert not module.conv._forward_hooks


@pytest.mark.parametrize("make", [BSQHMonitor, HamiltonianMonitor])
def test_another_optimizer_is_refused_at_the_start(make: Any) -> None:
    with pytest.raises(TypeError, match=r"Monitor shows what a BSQHOptimizer does.*SGD"):
        fit(make(), steps=1, strategy="auto")


@pytest.mark.parametrize("make", [BSQHMonitor, HamiltonianMonitor, SparsityMonitor])
@pytest.mark.parametrize("every", [0, -1])
def test_every_n_steps_out_of_range(make: Any, every: int) -> None:
    with pytest.raises(ValueError, match=r"every_n_steps"):
        make(every)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files instead of a data base, which would need a server's packages.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=tmp_path.as_uri())
    fit(BSQHMonitor(5), steps=10, logger=[logger, CSVLogger(tmp_path / "csv", name="", version="")])
    client, run = logger.experiment, str(logger.run_id)
    assert set(client.get_run(run).data.metrics) >= KEYS
    for key in KEYS:
        assert [metric.step for metric in client.get_metric_history(run, key)] == [4, 9]
    assert sorted(rows(tmp_path / "csv", "bsqh/epsilon")) == [4, 9]
