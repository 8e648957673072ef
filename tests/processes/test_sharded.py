"""Two processes, each with some rows of every parameter, follow one that has them all (method §5)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.problems import smooth_network
from tests.processes.pair import run_pair
from tests.processes.sharded import STEPS, TESTED, checkpoint, monitored, needs_shards_on_cpus, trajectory
from tests.processes.test_trajectories import assert_alike, assert_follows
from tests.processes.unshardable import REFUSED

Both = list[dict[str, Any]]
pytestmark = needs_shards_on_cpus


@pytest.mark.parametrize("name", TESTED)
def test_follows_one_process(both: Both, name: str, tmp_path: Path) -> None:
    assert_alike(both, f"sharded, {name}")
    two, one = both[0][f"sharded, {name}"], trajectory(tmp_path, name, devices=1)
    assert len(one["points"]) >= STEPS
    tries = [(theirs[7], ours[7]) for ours, theirs in zip(two["reports"], one["reports"], strict=True)]
    # One process tries again, by the tensors, if the best over all in one vector would empty one; pieces never do.
    assert all(theirs >= ours for theirs, ours in tries)
    assert_follows(*({**found, "reports": [r[:7] + r[8:] for r in found["reports"]]} for found in (two, one)))
    assert torch.equal(two["points"] == 0, one["points"] == 0)
    assert two["end"] == pytest.approx(one["end"])
    assert two["end"][1] is True


def test_the_trajectories_are_of_use(both: Both) -> None:
    """Trials are rejected, and weights are zero, as many as demanded."""
    assert max(report[7] for report in both[0]["sharded, backtracking"]["reports"]) > 1
    for name in TESTED:
        if name.startswith(("L0", "L1", "half", "outputs")):
            assert 0.0 < both[0][f"sharded, {name}"]["end"][0] < 1.0, name
    # Of 192 weights, and of 52.
    assert both[0]["sharded, cardinality"]["end"][0] == 1.0 - (192 - round(0.7 * 192)) / 192
    assert both[0]["sharded, odd rows"]["end"][0] == 1.0 - (52 - round(0.9 * 52)) / 52


@pytest.mark.parametrize("name", ["folder", "file"])
def test_a_checkpoint_goes_on_bit_by_bit(both: Both, name: str) -> None:
    for results in both:
        whole, resumed = results[f"sharded {name}, whole"], results[f"sharded {name}, second"]
        assert torch.equal(whole["points"][-8:], resumed["points"])
        assert whole["reports"][-8:] == resumed["reports"]
        assert results[f"sharded {name}, first"]["remembered"] == ["before", "mean", "mean_square", "updates"]
    assert_alike(both, f"sharded {name}, second")


def test_one_file_goes_on_unsharded(both: Both, shared_folder: Path) -> None:
    assert_follows(both[0]["sharded file, second, DDP"], both[0]["sharded file, second"])
    one = checkpoint(shared_folder, "for one", "second", devices=1, shard=None, network=smooth_network)
    assert_follows(both[0]["sharded, for one, second"], one)


def test_a_file_of_one_process_goes_on_sharded(both: Both, shared_folder: Path) -> None:
    assert_alike(both, "sharded, from one")
    one = checkpoint(shared_folder, "of one", "second", devices=1, shard=None, network=smooth_network)
    assert_follows(both[0]["sharded, from one"], one)


def _resumed_alone(folder: Path) -> dict[str, Any]:
    return checkpoint(folder, "folder for one", "second", devices=1, network=smooth_network)


@pytest.mark.slow
def test_a_folder_of_two_goes_on_in_one(both: Both, shared_folder: Path) -> None:
    (found,) = run_pair([("one", _resumed_alone)], shared_folder, processes=1, prefix="alone")
    assert_follows(found["one"], both[0]["sharded, for one, second"])


@pytest.mark.parametrize("name", ["None", "NaN", "None from the loader"])
def test_a_batch_that_one_process_cannot_use_is_left_out_by_all(both: Both, name: str) -> None:
    assert_alike(both, f"sharded, {name}")
    found = both[0][f"sharded, {name}"]
    assert found["global_step"] == 8
    assert [report[9] for report in found["reports"]] == [i == 3 for i in range(8)]


def test_a_window_goes_on_without_what_one_process_cannot_use(both: Both) -> None:
    assert_alike(both, "sharded, None, accumulated")
    found = both[0]["sharded, None, accumulated"]
    assert found["global_step"] == 4
    # Looked at after every batch; each step has moved.
    assert len(found["points"].unique(dim=0)) == 4


def test_an_error_in_one_data_loader_ends_both(both: Both) -> None:
    first, second = (results["sharded, loader"] for results in both)
    text = "no more disk in one process"
    assert first == ("ProcessError", f"Process 1 of 2 has ended the training: OSError: {text}", True)
    assert second == ("OSError", text, True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_is_refused(both: Both, name: str) -> None:
    for results in both:
        _, text, is_unchanged = results[f"refused: {name}"]
        assert re.search(REFUSED[name][1], text), text
        assert is_unchanged


def test_what_a_step_sends(both: Both) -> None:
    """As docs/scale.md says: with one trial, three small messages, and for a threshold five more."""
    for name, small in (("L0", 3), ("cardinality", 8)):
        found = both[0][f"messages, {name}"]
        assert found["reports"][5][7] == 1
        # Of the recorder, which wants whole parameters.
        found["messages"].pop("allgather_into_tensor_coalesced_", None)
        # Three parts are gathered for the forward, two again for the backward, and three for the trial.
        assert found["messages"] == {"allreduce_": small, "_allgather_base_": 8, "_reduce_scatter_base_": 3}


def test_mixed_precision(both: Both) -> None:
    assert_alike(both, "bf16-mixed")
    found = both[0]["bf16-mixed"]
    assert found["points"].dtype == torch.float32
    assert found["reports"][-1][1] < found["reports"][0][1]
    assert int((found["points"][-1] == 0).sum()) == round(0.7 * 192)


def test_flat_parameters_are_refused(both: Both) -> None:
    """Torch's mark of them is private; this fails if it changes."""
    for results in both:
        assert len(results["flat parameters"]) == 4
        assert all("FSDPStrategy), which has lost" in text for text in results["flat parameters"])


def test_monitors_see_all_rows(both: Both, tmp_path: Path) -> None:
    assert both[0]["sharded, monitors"] == both[1]["sharded, monitors"]
    one = monitored(tmp_path, devices=1)
    assert len(one) == len(both[0]["sharded, monitors"])
    for ours, theirs in zip(both[0]["sharded, monitors"], one, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert float(ours[key] or "nan") == pytest.approx(float(value or "nan"), rel=1e-7, abs=1e-10, nan_ok=True)
