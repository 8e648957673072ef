"""The table of a run before and after: printed by the command and the demo, kept for the report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_bsqh.export.finished_file import finished_file
from lightning_bsqh.export.measuring import measure, table_rows
from lightning_bsqh.export.run_folder import Run, example_inputs, load_run, metrics_of_test
from lightning_bsqh.export.shrinking import shrink

#: The file in a run folder that the report reads.
KEPT = "export.csv"
_LARGEST_FILE = 20_000


def before_after(folder: str | Path, seconds: float = 2.0) -> list[list[str]]:
    """The rows that ``lightning-bsqh export FOLDER --shrink`` prints for one sample.

    Args:
        folder: A run folder.
        seconds: How long to time, in all.

    Raises:
        ValueError: If the run cannot be read, or its network not be shrunk.
        ModuleNotFoundError: If safetensors or jsonargparse is not installed.
    """
    run = load_run(folder)
    return compare(run, shrink(run.model, example_inputs(run, 2)), example_inputs(run, 1), seconds)


def compare(run: Run, network: nn.Module | None, inputs: tuple[Any, ...], seconds: float = 2.0) -> list[list[str]]:
    """What a run's network costs and gives in its test, and another one beside it.

    Args:
        run: The run.
        network: What ``shrink`` gives; None for the run's network alone.
        inputs: Arguments of a forward.
        seconds: How long to time, in all.
    """
    networks: dict[str, nn.Module] = {"trained": _Forward(run.model)} | ({} if network is None else {"shrunk": network})
    columns = dict(zip(networks, measure(list(networks.values()), inputs, seconds), strict=True))
    metrics: dict[str, dict[str, float]] = {}
    for heading in networks:
        for name, value in metrics_of_test(run, network if heading == "shrunk" else None).items():
            metrics.setdefault(name, {})[heading] = value
    return table_rows(columns, metrics)


def keep(rows: Sequence[Sequence[str]], folder: str | Path) -> Path:
    """Writes the rows to the run folder's ``export.csv``, where the report finds them; an earlier table is replaced.

    Raises:
        ValueError: If a file of that name is there and holds something else.
    """
    path = Path(folder) / KEPT
    if path.exists() and not read_kept(folder):
        raise ValueError(f"{path} exists and is no table of lightning-bsqh, so it stays as it is: move it away.")
    with finished_file(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read_kept(folder: str | Path) -> list[list[str]]:
    """The rows that :func:`keep` has written; none if there are none, or the file holds something else."""
    path = Path(folder) / KEPT
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError):
        return []
    ours = bool(rows) and rows[0][:2] == ["", "trained"] and len({len(row) for row in rows}) == 1
    return rows if ours else []


class _Forward(nn.Module):
    """A module's forward with what it uses, and without its metrics: a LightningModule has more than a network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in module.named_children():
            if any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                self.add_module(name, child)
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._module = [module]

    def forward(self, *inputs: Any) -> Any:
        return self._module[0](*inputs)
