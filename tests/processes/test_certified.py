"""A certificate over the data of two processes is the one over all data, the same in both (method §9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes.certified import CERTIFIED, ERRORS, certificate, in_training
from tests.processes.test_trajectories import assert_alike, assert_follows

Both = list[dict[str, Any]]


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, rtol=0.0, atol=1e-10)
        elif isinstance(value, float):
            assert ours[key] == pytest.approx(value, rel=1e-10, abs=1e-10), key
        else:
            assert ours[key] == value, key


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
        assert same, key


@pytest.mark.parametrize("name", CERTIFIED)
def test_as_of_one_process(both: Both, name: str, tmp_path: Path) -> None:
    first, second = (results[f"certificate, {name}"] for results in both)
    assert_same(first, second)
    one = certificate(tmp_path, name, devices=1)
    assert one["total"] > 1e-6
    assert_close(first, one)


def test_the_true_hamiltonian_is_sampled(both: Both) -> None:
    assert both[0]["certificate, true K"]["0: sampled"] > 0.0


def test_within_a_training(both: Both, tmp_path: Path) -> None:
    assert_alike(both, "certificate, in training")
    first, second = (results["certificate, in training"] for results in both)
    one = in_training(tmp_path, devices=1)
    assert_follows(first, one)
    for ours, others, alone in zip(first["found"], second["found"], one["found"], strict=True):
        assert_same(ours, others)
        assert_close(ours, alone)
    assert first["logged"]["certificate"] == pytest.approx(first["found"][-1]["total"])


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_in_one_process_is_one_in_both(both: Both, what: str) -> None:
    first, second = (results[f"certificate, {what}"] for results in both)
    other = "ProcessError: Process {} of 2 has ended the certificate: "
    if what in ("weights", "wrapped"):
        # Both notice; the error of the first is told.
        text = {"weights": "hold different weights in 0.weight", "wrapped": "model.module"}[what]
        assert first.startswith("ValueError")
        assert second.startswith(other.format(0) + "ValueError")
        assert text in first
        assert text in second
        return
    text = {"closure": "KeyError: 'only in one process'", "loss": "returned inf", "samples": "shard_samples"}[what]
    assert first.startswith(other.format(1))
    assert text in first
    assert text in second


def test_sharded_parameters_are_refused(both: Both) -> None:
    first, second = (results["certificate, sharded"] for results in both)
    assert "save_distributed_checkpoint=False" in first
    assert "save_distributed_checkpoint=False" in second
