"""Every module can be imported, whatever versions of other packages are there, and imports only what is below it."""

from __future__ import annotations

import ast
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


def _imports(path: Path) -> set[str]:
    """What a module of the package imports of the package, at once or later, by its first two names."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for_types = [n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    left_out = {inner for node in for_types for inner in ast.walk(node)}
    names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and n not in left_out]
    return {name.split(".")[1] for name in names if name.startswith("lightning_bsqh.")}


def test_dependencies_point_downward_only() -> None:
    """Parts of the package, folders and single files, do not import each other in a circle."""
    package = ROOT / "lightning_bsqh"
    below: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).with_suffix("").parts[0]
        below.setdefault(part, set()).update(_imports(path) - {part})
    left = {part: set(others) for part, others in below.items() if part != "__init__"}
    while lowest := {part for part, others in left.items() if not others & left.keys()}:
        left = {part: others for part, others in left.items() if part not in lowest}
    assert not left
