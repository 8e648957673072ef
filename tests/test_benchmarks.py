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


@pytest.mark.parametrize("method", ["sgd", "adam", "bsqh"])
def test_step_cost_trains_by_every_method(method: str) -> None:
    clock = load("step_cost").train("lenet5", method, 2)
    assert clock.seconds_per_step() > 0
    assert bool(clock.trials) == (method == "bsqh")


@pytest.mark.parametrize("ours", [True, False])
def test_defaults_compares_like_with_like(ours: bool) -> None:
    pytest.importorskip("sklearn")
    from lightning_bsqh.zoo import SmallLeNet
    from lightning_bsqh.zoo.data import DigitsDataModule

    accuracy, zeros = load("defaults").run(SmallLeNet(), DigitsDataModule(val_images=0), 1, ours)
    assert 0.1 < accuracy <= 1.0
    assert zeros == pytest.approx(0.9 if ours else 0.0, abs=1e-4)
