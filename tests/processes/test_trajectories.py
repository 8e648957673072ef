"""Two processes with a batch of b each follow one with 2b, and each other to the bit (method §5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes.cases import checkpoint, trajectory, unequal
from tests.processes.training import STEPS
from tests.processes.trajectories import TESTED

Both = list[dict[str, Any]]


def assert_follows(two: dict[str, Any], one: dict[str, Any]) -> None:
    """All points, and the reports as far as they are numbers, to 1e-10."""
    assert len(two["points"]) == len(one["points"])
    torch.testing.assert_close(two["points"], one["points"], rtol=0.0, atol=1e-10)
    for ours, theirs in zip(two["reports"], one["reports"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-10)


def assert_alike(both: Both, name: str) -> None:
    """Parameters, buffers, ε and reports of the two, bit by bit, after every step."""
    first, second = (results[name] for results in both)
    assert torch.equal(first["points"], second["points"])
    assert torch.equal(first["buffers"], second["buffers"])
    assert first["reports"] == second["reports"]


#: Iterations that are looked at; all, but where they are fewer, or two to a batch.
_REPORTED = {"true K, full batch": range(10), "manual, twice": range(1, STEPS, 2)}


@pytest.mark.parametrize("name", TESTED)
def test_follows_one_process(both: Both, name: str, tmp_path: Path) -> None:
    assert_alike(both, name)
    one = trajectory(tmp_path, name, devices=1)
    assert {report[0] for report in one["reports"]} >= set(_REPORTED.get(name, range(STEPS)))
    assert_follows(both[0][name], one)


def test_some_trials_are_rejected(both: Both) -> None:
    for name in ("jacobi, backtracking", "gauss-seidel, backtracking", "full batch, backtracking"):
        assert max(report[7] for report in both[0][name]["reports"]) > 1


@pytest.mark.parametrize("full", [False, True])
def test_unequal_shares_are_weighted_by_their_samples(both: Both, full: bool, tmp_path: Path) -> None:
    name = "unequal, full batch" if full else "unequal"
    assert_alike(both, name)
    assert_follows(both[0][name], unequal(tmp_path, devices=1, full=full))


def test_buffers_are_those_of_ddp_at_every_forward(both: Both) -> None:
    for results in both:
        assert len(results["buffers"]) == 10
        torch.testing.assert_close(results["buffers"], results["buffers of DDP"], rtol=0.0, atol=0.0)
    assert torch.equal(torch.stack(both[0]["buffers"]), torch.stack(both[1]["buffers"]))


@pytest.mark.parametrize("name", ["plain", "drawing"])
def test_a_checkpoint_of_two_goes_on_bit_by_bit(both: Both, name: str) -> None:
    for results in both:
        whole, resumed = results[f"{name}, whole"], results[f"{name}, second"]
        assert torch.equal(whole["points"][8:], resumed["points"])
        assert whole["reports"][8:] == resumed["reports"]
    assert_alike(both, f"{name}, second")


def test_a_checkpoint_of_two_goes_on_in_one(both: Both, shared_folder: Path) -> None:
    one = checkpoint(shared_folder, "plain", "second", devices=1)
    assert_follows(both[0]["plain, second"], one)


def test_a_checkpoint_of_one_goes_on_in_two(both: Both, shared_folder: Path) -> None:
    assert_alike(both, "resumed from one")
    assert_follows(both[0]["resumed from one"], checkpoint(shared_folder, "of one", "second", devices=1))
