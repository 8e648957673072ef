"""Two processes that have been through all cases once, for all tests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.problems import smooth_network
from tests.processes import sharded
from tests.processes.cases import cases, checkpoint
from tests.processes.pair import run_pair


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"


@pytest.fixture(scope="session")
def both(shared_folder: Path) -> list[dict[str, Any]]:
    """What each process found, by the case's name."""
    done = shared_folder / "done"
    try:
        shared_folder.mkdir()
    except FileExistsError:
        # Another worker of these tests has started them.
        while not done.exists():
            time.sleep(0.2)
        return [torch.load(shared_folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    try:
        checkpoint(shared_folder, "of one", "first", devices=1)
        sharded.checkpoint(shared_folder, "of one", "first", devices=1, shard=None, network=smooth_network)
        return run_pair(cases(), shared_folder)
    finally:
        done.touch()
