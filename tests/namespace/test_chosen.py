"""Which of Lightning's two names is taken, and that nothing in the package names it elsewhere."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import lightning_bsqh
from lightning_bsqh.namespace import FABRIC, NAME, OTHER, pl
from lightning_bsqh.namespace.chosen import choose

PACKAGE = Path(lightning_bsqh.__file__).parent
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


@pytest.mark.parametrize(
    ("wanted", "imported", "installed", "expected"),
    [
        (None, [], {"lightning", "pytorch_lightning"}, "lightning.pytorch"),
        (None, [], {"pytorch_lightning"}, "pytorch_lightning"),
        (None, ["torch", "pytorch_lightning"], {"lightning", "pytorch_lightning"}, "pytorch_lightning"),
        (None, ["lightning", "lightning.pytorch", "pytorch_lightning"], set(), "lightning.pytorch"),
        (None, ["pytorch_lightning", "lightning", "lightning.pytorch"], set(), "pytorch_lightning"),
        # Fabric alone, or Lightning's parts without its training, say nothing.
        (None, ["lightning.fabric", "lightning_fabric"], {"pytorch_lightning"}, "pytorch_lightning"),
        ("pytorch_lightning", ["lightning.pytorch"], set(), "pytorch_lightning"),
        ("lightning", ["pytorch_lightning"], set(), "lightning.pytorch"),
        ("", ["pytorch_lightning"], set(), "pytorch_lightning"),
    ],
)
def test_choice(wanted: str | None, imported: list[str], installed: set[str], expected: str) -> None:
    assert choose(wanted, imported, installed.__contains__) == expected


def test_choices_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"LIGHTNING_BSQH_NAMESPACE must be one of .*, got 'torch'"):
        choose("torch", [], lambda name: True)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        choose(None, [], lambda name: False)


def test_this_process() -> None:
    assert (NAME, OTHER, FABRIC) == ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")
    assert pl is sys.modules["lightning.pytorch"]


def _imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}:{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [f"{alias.name}:{alias.asname}" for alias in node.names]
    return [name for name in found if name.split(":")[0].split(".")[0] in LIGHTNING]


def test_lightning_is_named_in_one_place() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "namespace"]
    assert len(files) > 100
    named = {path.name: _imports(ast.parse(path.read_text(encoding="utf-8"))) for path in files}
    assert {name: imports for name, imports in named.items() if imports} == {}


@pytest.mark.parametrize("file", ["__init__.py", "cli.py"])
def test_both_blocks_hold_the_same(file: str) -> None:
    tree = ast.parse((PACKAGE / "namespace" / file).read_text(encoding="utf-8"))
    (choice,) = [node for node in tree.body if isinstance(node, ast.If)]
    first, second = (_imports(ast.Module(body, [])) for body in (choice.body, choice.orelse))
    renamed = [re.sub(r"^lightning\.(pytorch|fabric)", r"\1", name) for name in first]
    other = [re.sub("^pytorch_lightning", "pytorch", re.sub("^lightning_fabric", "fabric", n)) for n in second]
    assert sorted(renamed) == sorted(other)
    assert renamed
