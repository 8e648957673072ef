"""benchmarks/theory.py runs, says what it found, and measures Λ rightly."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.problems import cross_entropy, data, smooth_network

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "theory.py"


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_theory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_runs_in_reduced_mode(theory: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert theory.main(["--iterations", "40", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0 failed" in out
    with (tmp_path / "theory.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["run"] for row in rows}) == 4
    assert {row["verdict"] for row in rows} == {"holds", "observed"}
    with (tmp_path / "theory_curves.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4 * 40
    assert (tmp_path / "theory.png").stat().st_size > 10_000


def test_the_trainer_takes_the_same_way(theory: ModuleType) -> None:
    regularizer = theory.L0(theory.RHO)
    runs = [theory.train("run", True, regularizer, 40, 3, size) for size in (None, 512, 100)]
    for run in runs[1:]:
        assert run.objectives == pytest.approx(runs[0].objectives, abs=1e-10)
        assert run.epsilons == pytest.approx(runs[0].epsilons, abs=1e-10)
        assert all(check.holds is not False for check in theory.checks(run))


def test_says_when_a_promise_is_broken(
    theory: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Lipschitz constant that is far too small must be caught by the ε that were rejected.
    monkeypatch.setattr(theory, "largest_curvature", lambda *arguments: 1e-6)
    assert theory.main(["--iterations", "60", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAILS: full batch, no R: largest ε rejected" in out


def test_power_iteration_finds_the_largest_eigenvalue(theory: ModuleType) -> None:
    network = smooth_network()
    x, y = data()
    parameters = list(network.parameters())
    found = theory.PowerIteration(parameters)(lambda: cross_entropy(network, x, y), limit=500, tolerance=1e-9)
    gradient = torch.autograd.grad(cross_entropy(network, x, y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    rows = [
        torch.cat([r.flatten() for r in torch.autograd.grad(entry, parameters, retain_graph=True)]) for entry in flat
    ]
    exact = torch.linalg.eigvalsh(torch.stack(rows)).abs().max()
    assert found == pytest.approx(exact.item(), rel=1e-3)
