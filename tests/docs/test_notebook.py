"""Runs the cells of the notebook, one after the other, as a reader does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.pages import DOCS

NOTEBOOK = json.loads((DOCS / "tutorials" / "digits.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.filterwarnings("ignore")
def test_cells_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        exec(compile(cell, f"digits.ipynb: cell {number}", "exec"), names)
    assert names["zeros"] == pytest.approx(0.9, abs=1e-3)
    assert names["accuracy"] > 0.97
    assert names["notes"].zeros[-1] == pytest.approx(0.9, abs=1e-3)
