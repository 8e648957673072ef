"""Reads a W&B offline run back with W&B's own reader."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _inspect(folder: Path, *options: str) -> str:
    # `wandb leet inspect` reads the file as `wandb sync` does.
    (file,) = folder.glob("run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2 and ("leet run" in done.stderr or "No such option" in done.stderr):
        pytest.skip(f"wandb {importlib.metadata.version('wandb')} has no reader of offline runs")
    done.check_returncode()
    return done.stdout


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged, a dict for each call; of a nested value only its parts, such as ``key._type``."""
    records = [json.loads(line) for line in _inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def final_state(folder: Path) -> dict[str, Any]:
    """The run's ``config``, ``summary`` and more."""
    return json.loads(_inspect(folder, "--summary"))
