"""What happens in one process is decided upon by all: nobody goes on alone, and nobody waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes.cases import monitors
from tests.processes.test_trajectories import assert_alike

Both = list[dict[str, Any]]


@pytest.mark.parametrize("name", ["None", "NaN", "None from the loader"])
def test_a_batch_that_one_process_cannot_use_is_left_out_by_all(both: Both, name: str) -> None:
    assert_alike(both, name)
    for results in both:
        found = results[name]
        assert found["global_step"] == 8
        assert [report[9] for report in found["reports"]] == [i == 3 for i in range(8)]
        moved = (found["points"][1:] != found["points"][:-1]).any(1).tolist()
        assert moved == [i != 3 for i in range(1, 8)]
    assert both[0]["NaN"]["skipped"] == both[1]["NaN"]["skipped"] == 1
    assert both[0]["None"]["skipped"] == both[1]["None"]["skipped"] == 0


def test_a_scaler_skips_and_lowers_its_scale_alike(both: Both) -> None:
    assert_alike(both, "NaN, scaled")
    for results in both:
        found = results["NaN, scaled"]
        assert [report[9] for report in found["reports"]] == [i == 3 for i in range(8)]
        assert (found["scale"], found["skipped"]) == (512.0, 1)


def test_manual_optimization_leaves_out_what_one_process_lacks(both: Both) -> None:
    assert_alike(both, "None from the loader, manual")
    assert [results["None from the loader, manual"]["global_step"] for results in both] == [8, 8]
    assert len(both[0]["None from the loader, manual"]["points"]) > 7


@pytest.mark.parametrize("name", ["manual, more steps", "manual, fewer steps"])
def test_manual_optimization_with_different_numbers_of_steps(both: Both, name: str) -> None:
    for results in both:
        kind, text, _ = results[f"ends: {name}"]
        assert kind == "ProcessError"
        assert "The processes are at different places" in text


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "trial",
        "trial, gauss-seidel",
        "full batch",
        "full batch, trial",
        "accumulated",
        "manual",
        "manual, closure",
    ],
)
def test_an_error_in_one_process_ends_both(both: Both, name: str) -> None:
    first, second = (results[f"ends: {name}"] for results in both)
    assert first == ("ProcessError", "Process 1 of 2 has ended the training: KeyError: 'only in one process'", True)
    assert second == ("KeyError", "'only in one process'", True)


def test_an_error_in_one_data_loader_ends_both(both: Both) -> None:
    first, second = (results["ends: loader"] for results in both)
    text = "no more disk in one process"
    assert first == ("ProcessError", f"Process 1 of 2 has ended the training: OSError: {text}", True)
    assert second == ("OSError", text, True)


def test_errors_in_both_processes(both: Both) -> None:
    first, second = (results["ends: both"] for results in both)
    assert first == ("KeyError", "'only in one process'", True)
    assert second == ("ProcessError", "Process 0 of 2 has ended the training: KeyError: 'only in one process'", True)


def test_data_loaders_of_different_lengths(both: Both) -> None:
    for results in both:
        kind, text, _ = results["ends: shorter loader"]
        assert kind == "MisconfigurationException"
        assert "different numbers of batches, [8, 7]" in text


def test_options_reach_ddp(both: Both) -> None:
    for results in both:
        assert results["options of DDP"] == {"unused": True, "static": True, "backend": "gloo"}


def test_monitors_write_once(both: Both, tmp_path: Path) -> None:
    keys, steps = both[0]["monitors"]
    assert both[1]["monitors"] == (keys, steps)
    assert {"bsqh/epsilon", "hamiltonian/total", "pmp_residual/total", "sparsity/total"} <= set(keys)
    # As in one process.
    assert (keys, steps) == monitors(tmp_path, devices=1)
