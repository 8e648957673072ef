"""One thread, no network, a folder of its own and the same seeds for every case.

The cases in this folder were found by trying the package on networks and habits of others; each says what is right.
"""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    for name, value in {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Only make test-all runs them: the kinds that they stand for have quicker tests of their own."""
    for item in items:
        if "tests/cases/" in item.nodeid:
            item.add_marker(pytest.mark.slow)
