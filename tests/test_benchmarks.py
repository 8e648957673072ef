"""The benchmarks still run; their figures are no test's business."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("torchvision")
FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, and what reads its own source, look their module up.
    sys.modules[spec.name] = module
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

    accuracy, zeros = load("defaults").run(SmallLeNet(), DigitsDataModule(val_images=0), 2, ours)
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


def test_epsilon_compares_the_rules_and_repeats_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    benchmark = load("epsilon")
    arguments = ["--networks", "digits", "--epochs", "2", "--sparsities", "0.9", "--scan", "62.5"]
    arguments += ["--starts", "0.01", "--rules", "fixed", "curvature", "--drawn-sparsity", "0.9"]
    arguments += ["--output", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    runs = benchmark.read(tmp_path / "runs.jsonl")
    assert [(run.setting.rule, run.setting.epsilon) for run in runs] == [("fixed", 62.5), ("curvature", 0.625)]
    for run in runs:
        assert run.zeros == pytest.approx(0.9, abs=1e-4)
        assert 0.0 <= run.rejected < 1.0
        assert len(run.accuracies) == len(run.rejections) == 2
        assert all(epsilon > 0 for _, epsilon in run.epsilons)
    assert runs[1].epsilons[0][1] >= 25.0  # raised until the step is no longer than the weights permit
    assert (tmp_path / "epsilon.png").stat().st_size > 0
    assert "curvature" in (tmp_path / "epsilon.md").read_text(encoding="utf-8")

    before = (tmp_path / "runs.jsonl").read_text(encoding="utf-8")
    stale = before.replace(runs[1].setting.fingerprint, "00000000")
    assert benchmark.main(arguments) == 0
    assert (tmp_path / "runs.jsonl").read_text(encoding="utf-8") == before
    # What another version of a rule has done does not count.
    (tmp_path / "runs.jsonl").write_text(stale, encoding="utf-8")
    assert [run.setting.rule for run in benchmark.read(tmp_path / "runs.jsonl")] == ["fixed"]
    assert benchmark.main(["--networks", "mnist", "--output", str(tmp_path / "none")]) == 0
    assert "mnist is left out" in capsys.readouterr().out


def test_epsilon_calls_a_fixed_start_back_after_every_iteration() -> None:
    benchmark = load("epsilon")
    from lightning_bsqh.method.augmentation import Trial

    rule = benchmark.Fixed(10.0, max_trials=3)
    seen = []
    for accepted in (False, False, True, True, False, False, False):
        rule.observe(Trial(1.0, 0.0, 1.0, 1.0, accepted, False, 0.0))
        seen.append(rule.epsilon)
    assert seen == [15.0, 22.5, 10.0, 10.0, 15.0, 22.5, 10.0]


def test_monitors_take_a_part_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    own, step = load("monitors").measure(every=2, steps=4)
    assert 0.0 < own < step


def test_openvino_is_asked_for_by_name(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert load("openvino_sparse").main(["--zeros", "0.5"]) == 1
    assert "pip install openvino nncf" in capsys.readouterr().err


@pytest.fixture
def of_one_epoch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The digits for one epoch, as the benchmarks that compare methods ask for them."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(FOLDER))
    tasks = importlib.import_module("frontier_tasks")
    return replace(tasks.make_task("digits", None, None), epochs=1)


@pytest.mark.parametrize("method", ["bsqh", "sgd", "regrowth"])
def test_frontier_does_nothing_twice(
    method: str, of_one_epoch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontier = importlib.import_module("frontier")
    options = Namespace(sparsities=[0.5], methods=[method], seeds=[0])
    runs = frontier.Runs(tmp_path / "runs.jsonl", False)
    (row,) = frontier.measure(runs, "digits", of_one_epoch, options)
    assert row.zeros == pytest.approx(0.5, abs=1e-3)
    monkeypatch.setattr(frontier, "train", None)
    assert frontier.measure(runs, "digits", of_one_epoch, options) == [row]
    monkeypatch.setattr(frontier, "code_of", lambda method: "other")
    with pytest.raises(TypeError):
        frontier.measure(runs, "digits", of_one_epoch, options)
    all_runs = frontier.Runs(tmp_path / "runs.jsonl", True)
    assert frontier.measure(all_runs, "digits", of_one_epoch, options) == [row]
    assert row.tuning == (1 if method == "bsqh" else 4)


def test_ablation_compares_with_the_method_as_it_comes(
    of_one_epoch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = importlib.import_module("ablation")
    monkeypatch.setattr(ablation, "make_task", lambda *of: of_one_epoch)
    runs = importlib.import_module("frontier").Runs(tmp_path / "runs.jsonl", False, ablation.prepare)
    variants = [name for name in ablation.VARIANTS if name in ("bsqh", "no ramp", "metric euclidean")]
    options = Namespace(tasks=["digits"], sparsities=[0.5], variants=variants, seeds=[0], mnist=None, cifar10=None)
    lines = ablation.table(runs, options).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == variants
    assert len(runs.read()) == 3


def test_every_variant_of_the_ablation_is_a_strategy(of_one_epoch: Any) -> None:
    ablation = importlib.import_module("ablation")
    for name in ablation.VARIANTS:
        ablation.prepare(f"bsqh, {name}" if name != "bsqh" else name, 0.0, 0.5, None, 1)
