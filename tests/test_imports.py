"""Every module can be imported, whatever versions of other packages are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

for package in ("jinja2", "jsonargparse", "onnxruntime", "safetensors", "sklearn", "torchvision", "wandb"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[1]
SCRIPT = """
import importlib, pkgutil
import lightning_bsqh
names = [module.name for module in pkgutil.walk_packages(lightning_bsqh.__path__, "lightning_bsqh.")]
names = [name for name in names if not name.endswith(".__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_can_be_imported() -> None:
    # In a process of its own, as imports leave traces.
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
