"""Run folders as a CSVLogger, LightningCLI and ModelCheckpoint leave them, without a training."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

LAYERS = ("network.conv1", "network.fc1")


def made_weights() -> dict[str, Tensor]:
    """Two weight tensors with known zeros (5 of 18 and 20 of 40), and a bias."""
    conv, linear = torch.ones(2, 1, 3, 3), torch.ones(4, 10)
    conv.view(-1)[[0, 1, 2, 3, 17]] = 0.0
    linear[:2] = 0.0
    return {"network.conv1.weight": conv, "network.conv1.bias": torch.zeros(2), "network.fc1.weight": linear}


def make_metrics(folder: Path, steps: int = 60, layers: Sequence[str] = LAYERS, scale: float = 1.0) -> Path:
    """Writes a metrics.csv with all keys of the monitors, most cells empty."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        row: dict[str, Any] = {"step": step, "bsqh/epsilon": 100.0 * math.exp(step / 20), "bsqh/skipped": 0.0}
        # In every tenth iteration two trials were rejected.
        row |= {"bsqh/trials": 3.0 if step % 10 == 0 else 1.0, "bsqh/accepted": 1.0, "bsqh/tau": 1e-3 / (step + 1)}
        row |= {"bsqh/objective": scale * 2.0 / (step + 1), "bsqh/loss_decrease": 0.01 * scale}
        # Every thirtieth step raises the loss.
        row |= {"bsqh/promised_decrease": 1e-7 / (step + 1)}
        row |= {"bsqh/loss_decrease": -0.02 * scale} if step % 30 == 29 else {}
        rows += [row, {"step": step, "epoch": step // 20, "train_loss": scale * 2.1 / (step + 1)}]
        if step % 5 == 4:
            sparsity = {f"sparsity/{layer}": (step + i) / (2 * steps) for i, layer in enumerate(layers)}
            more = {"sparsity/total": step / (2 * steps), "nonzero/total": 58.0 - step / 2, "hamiltonian/total": -1.5}
            more |= {"multiply_adds/share": 1 - step / (2 * steps), "support/entered": 2.0, "support/left": 7.0}
            more |= {f"hamiltonian/{layer}": -0.5 - i for i, layer in enumerate(layers)}
            more |= {f"augmented_hamiltonian/gain/{layer}": 1e-4 / (step + 1) for layer in layers}
            more |= {"pmp_residual/total": 1e-2 / step, **{f"pmp_residual/{layer}": 1e-3 / step for layer in layers}}
            rows.append({"step": step, **sparsity, **more})
        if step % 20 == 19:
            rows.append({"step": step, "val_loss": scale * 0.5, "val_accuracy": 0.9 + step / 1000})
    rows.append({"step": steps, "test_accuracy": 0.9861, "test_loss": 0.07})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def make_run(
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A whole run folder: metrics, config.yaml and checkpoint."""
    make_metrics(folder, **options)
    if settings is None:
        strategy = {"class_path": "lightning_bsqh.BSQHStrategy", "init_args": {"eta": 1e-4, "epsilon": None}}
        settings = {"seed_everything": 0, "trainer": {"strategy": strategy, "callbacks": [{"class_path": "A"}]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    make_checkpoint(folder / "checkpoints" / "best.ckpt", made_weights() if weights is None else weights)
    return folder


def make_checkpoint(file: Path, weights: Mapping[str, Tensor], step: int = 40, best: str = "") -> None:
    file.parent.mkdir(exist_ok=True)
    callbacks = {"ModelCheckpoint{}": {"best_model_path": best}}
    torch.save({"state_dict": dict(weights), "global_step": step, "callbacks": callbacks}, file)
