"""Reads metrics.csv, whatever state it is in, and what follows from its series."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

#: Steps and values of one metric.
Series = tuple[list[int], list[float]]

# Beyond this not every whole number is a double, and no training counts so far.
_LARGEST_STEP = 2**53
_PORTION = 5_000


@dataclass(frozen=True)
class MetricsFile:
    """What a metrics.csv tells.

    Attributes:
        series: Steps and values by key; cells left empty are left out.
        epochs: After how many steps each epoch ended, by its number from 1, as far as the file tells: that is the
            last step logged with the epoch's number, exact where something is logged at its end, as a validation is.
        faults: What could not be read: a phrase for each row or cell.
    """

    series: dict[str, Series]
    epochs: dict[int, int]
    faults: list[str]


def read_metrics(metrics_csv: str | os.PathLike[str]) -> dict[str, Series]:
    """The series in a CSVLogger's file, by key; see :func:`read_metrics_file`."""
    return read_metrics_file(metrics_csv).series


def read_metrics_file(metrics_csv: str | os.PathLike[str]) -> MetricsFile:
    """Reads a CSVLogger's file; rows without a usable step and cells that are no numbers are left out.

    Args:
        metrics_csv: The file.

    Raises:
        OSError: If the file cannot be read.
        UnicodeDecodeError: If it is no text.
        ValueError: If there are rows or cells but none of them can be used.
    """
    series: dict[str, Series] = {}
    epochs: dict[int, int] = {}
    faults: list[str] = []
    with Path(metrics_csv).open(newline="", encoding="utf-8-sig") as text:
        rows = _forgiving(csv.reader(text), faults)
        header = next(rows, [])
        # In portions, and by columns within them: a training of hundreds of thousands of rows is read in seconds.
        while portion := list(islice(rows, _PORTION)):
            steps, columns = _columns(header, portion, faults)
            _add_series(series, steps, columns, faults)
            _add_epochs(epochs, steps, columns)
    if faults and not series:
        raise ValueError(f"nothing in it can be read, there is {faults[0]}")
    return MetricsFile(series, dict(sorted(epochs.items())), faults)


def finite(series: Series) -> Series:
    """The points whose values are finite."""
    pairs = [(step, value) for step, value in zip(*series, strict=True) if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def rejections(metrics: Mapping[str, Series]) -> dict[int, int]:
    """Number of rejected trials in each iteration that had any; empty where the file does not tell."""
    if not {"bsqh/trials", "bsqh/accepted"} <= metrics.keys():
        return {}
    accepted = dict(zip(*finite(metrics["bsqh/accepted"]), strict=True))
    trials = zip(*finite(metrics["bsqh/trials"]), strict=True)
    counts = {step: int(count - accepted[step]) for step, count in trials if step in accepted}
    return {step: count for step, count in counts.items() if count > 0}


def settled(series: Series, tolerance: float = 1e-5) -> int | None:
    """The step from which the values stay as the last one is; None if they settle at the last two readings or never."""
    steps, values = finite(series)
    if len(values) < 3 or values[-1] <= 0.0:
        return None
    index = len(values)
    while index and abs(values[index - 1] - values[-1]) <= tolerance:
        index -= 1
    return steps[index] if 0 < index <= len(values) - 3 else None


def _columns(header: list[str], rows: list[list[str]], faults: list[str]) -> tuple[list[int], dict[str, Sequence[str]]]:
    """The steps of the rows that have one, and their cells by key."""
    whole = [row for row in rows if len(row) == len(header)]
    # A line without anything is none.
    torn = sum(1 for row in rows if row) - sum(1 for row in whole if row)
    faults += ["a row with more or fewer cells than the header"] * torn
    found = [_step(row[header.index("step")]) for row in whole] if "step" in header else [None] * len(whole)
    kept = [row for row, step in zip(whole, found, strict=True) if step is not None]
    faults += ["a row without a whole number as its step"] * (len(whole) - len(kept))
    columns: dict[str, Sequence[str]] = dict(zip(header, zip(*kept, strict=True), strict=True)) if kept else {}
    return [step for step in found if step is not None], columns


def _add_series(
    series: dict[str, Series], steps: Sequence[int], columns: Mapping[str, Sequence[str]], faults: list[str]
) -> None:
    for key, column in columns.items():
        if key in ("", "step", "epoch") or not any(column):
            continue
        # An empty cell is false.
        cells, at = list(filter(None, column)), list(compress(steps, column))
        try:
            values = list(map(float, cells))
        except ValueError:
            numbers = [_is_number(cell) for cell in cells]
            faults += [f"a cell of {key} that is no number"] * numbers.count(False)
            values, at = list(map(float, compress(cells, numbers))), list(compress(at, numbers))
        if values:
            known = series.setdefault(key, ([], []))
            known[0].extend(at)
            known[1].extend(values)


def _add_epochs(ends: dict[int, int], steps: Sequence[int], columns: Mapping[str, Sequence[str]]) -> None:
    # A test after the training counts on from it.
    tests = [column for key, column in columns.items() if key.startswith("test")]
    tested = {index for column in tests for index, cell in enumerate(column) if cell}
    for index, cell in enumerate(columns.get("epoch", ())):
        epoch = _step(cell) if cell and index not in tested else None
        if epoch is not None:
            ends[epoch + 1] = max(ends.get(epoch + 1, 0), steps[index] + 1)


def _forgiving(reader: Iterable[list[str]], faults: list[str]) -> Iterator[list[str]]:
    """The rows that csv can read; after one that it cannot, it goes on with the next line."""
    rows = iter(reader)
    while True:
        try:
            yield from rows
            return
        except csv.Error as error:
            faults.append(f"a line of which csv says: {error}")


def _step(cell: str) -> int | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if value.is_integer() and 0 <= value < _LARGEST_STEP else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
