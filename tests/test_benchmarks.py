"""The benchmarks still run; their figures are no test's business."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("rich")
pytest.importorskip("torchvision")
FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["sgd", "adam", "bsqh", "gauss-seidel"])
def test_step_cost_trains_by_every_method(method: str) -> None:
    clock = load("step_cost").train("lenet5", method, 2)
    assert clock.seconds_per_step() > 0
    assert bool(clock.trials) == (method in ("bsqh", "gauss-seidel"))


@pytest.mark.parametrize("ours", [True, False])
def test_defaults_compares_like_with_like(ours: bool) -> None:
    pytest.importorskip("sklearn")
    from lightning_bsqh.zoo import SmallLeNet
    from lightning_bsqh.zoo.data import DigitsDataModule

    accuracy, zeros = load("defaults").run(SmallLeNet(), DigitsDataModule(val_images=0), 1, ours)
    assert 0.1 < accuracy <= 1.0
    assert zeros == pytest.approx(0.9 if ours else 0.0, abs=1e-4)


@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_sweeps_trains_with_both(sweep: str) -> None:
    pytest.importorskip("sklearn")
    from lightning_bsqh.zoo import SmallLeNet
    from lightning_bsqh.zoo.data import DigitsDataModule

    result = load("sweeps").run(SmallLeNet(), DigitsDataModule(val_images=0), 1, 0.5, sweep)
    assert 0.05 < result["accuracy"] <= 1.0


def test_certificate_of_a_full_batch_training() -> None:
    pytest.importorskip("sklearn")
    result, zeros, accuracy = load("certificate").run(2, 1e-5)
    assert 0.0 <= result.satisfied(1e-6) <= result.satisfied(1e-3) <= 1.0
    assert result.total >= 0.0
    assert 0.0 <= zeros < 1.0
    assert 0.0 <= accuracy <= 1.0
