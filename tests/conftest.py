"""Fixtures that every test may use: fixed seeds, quiet Lightning, a small Trainer and small data."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.older_lightning import accept_weights_only


@pytest.fixture(scope="session", autouse=True)
def quiet_lightning() -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    # Small tensors: more threads cost time, and sums in another order would change last digits.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def weights_only_in_all_versions() -> Iterator[None]:
    take_back = accept_weights_only()
    yield
    take_back()


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(0)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """A Trainer on the CPU that writes and prints nothing unless asked to."""

    def make(strategy: Any = "auto", **options: Any) -> L.Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        if options.get("max_steps") is not None and "max_epochs" not in options:
            defaults["max_epochs"] = -1
        return L.Trainer(strategy=strategy, **{**defaults, **options})

    return make


@pytest.fixture
def make_loader() -> Callable[..., DataLoader[Any]]:
    """Batches (x, y) of a fixed regression problem: x of shape [n, 4], y of shape [n, 1]."""

    def make(samples: int = 24, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(samples, 4, generator=generator)
        y = x.sum(dim=1, keepdim=True) + 0.1 * torch.randn(samples, 1, generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=batch_size, **options)

    return make
