"""What a network costs: parameters, bytes, multiplications and time, before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_bsqh._validation import number
from lightning_bsqh.export.comparison import as_inputs, evaluating, outputs_of
from lightning_bsqh.export.sparse_file import sparse_bytes


@dataclass(frozen=True)
class Measurement:
    """What one network costs.

    Attributes:
        parameters: Number of parameters.
        nonzeros: Number of those that are not zero.
        dense_bytes: Bytes of parameters and buffers as they lie in memory.
        file_bytes: Bytes of the file that ``save_sparse`` writes.
        multiply_adds: Multiplications with an addition in one forward on the example inputs, zeros included.
        milliseconds: Duration of that forward; of many the one that a tenth is faster than.
    """

    parameters: int
    nonzeros: int
    dense_bytes: int
    file_bytes: int
    multiply_adds: int
    milliseconds: float


ROWS = {
    "parameters": ("parameters", ",.0f"),
    "not zero": ("nonzeros", ",.0f"),
    "bytes in memory": ("dense_bytes", ",.0f"),
    "bytes in a sparse file": ("file_bytes", ",.0f"),
    "multiply-adds": ("multiply_adds", ",.0f"),
    "milliseconds": ("milliseconds", ",.3f"),
}


def measure(models: Sequence[nn.Module], example_inputs: Any, seconds: float = 2.0) -> list[Measurement]:
    """Measures several networks on the same inputs, in evaluation mode, with torch's present number of threads.

    Their forwards are timed in turns, so that what else the machine does meets all of them.

    Args:
        models: Networks.
        example_inputs: The argument of their forwards, or a tuple of several.
        seconds: How long to time, in all, > 0.

    Raises:
        TypeError: If one of ``models`` is no network.
        ValueError: If an argument is out of its range, ``models`` is empty, or one does not run on the inputs.
        ModuleNotFoundError: If safetensors is not installed.
    """
    inputs = as_inputs(example_inputs)
    if not models:
        raise ValueError("models must hold at least one network, got none.")
    for model in models:
        outputs_of(model, inputs)
    times = latencies(models, inputs, seconds)
    return [_measure(model, inputs, milliseconds) for model, milliseconds in zip(models, times, strict=True)]


def latencies(
    models: Sequence[Callable[..., Any]],
    inputs: tuple[Any, ...],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Milliseconds of a call of each, taken in turns; networks in evaluation mode, without gradients.

    Of many calls the one that a tenth is faster than: whatever else runs on a machine only ever makes a call slower.

    Args:
        models: What is called.
        inputs: Its arguments.
        seconds: How long to time, in all.
        clock: ``time.thread_time`` leaves out what other programs take of a processor that is never free; for calls
            that work on the CPU in the thread that makes them.
    """
    number("seconds", seconds, low=0.0, open_low=True)
    modules = nn.ModuleList(model for model in models if isinstance(model, nn.Module))
    with evaluating(modules):
        for model in models:
            model(*inputs)
        times: list[list[float]] = [[] for _ in models]
        end = time.perf_counter() + seconds
        # The first round warms up.
        while time.perf_counter() < end or len(times[0]) < 4:
            for model, taken in zip(models, times, strict=True):
                taken.append(_milliseconds(model, inputs, clock))
    return [sorted(taken[1:])[len(taken[1:]) // 10] for taken in times]


def table(columns: dict[str, Measurement], metrics: dict[str, dict[str, float]] | None = None) -> str:
    """A table of measurements side by side, with how many times less the last has than the first.

    Args:
        columns: Measurements by heading.
        metrics: Further rows by name, each with a value by heading, or without.
    """
    return aligned(table_rows(columns, metrics))


def table_rows(columns: dict[str, Measurement], metrics: dict[str, dict[str, float]] | None = None) -> list[list[str]]:
    """The cells of :func:`table`, the heading first."""
    values = list(columns.values())
    lines = [["", *columns, "ratio" if len(columns) > 1 else ""]]
    for name, (attribute, style) in ROWS.items():
        row = [getattr(value, attribute) for value in values]
        ratio = f"{row[0] / row[-1]:.2f} x" if len(row) > 1 and row[-1] else ""
        lines.append([name, *(format(value, style) for value in row), ratio])
    for name, by_heading in (metrics or {}).items():
        lines.append([name, *(f"{by_heading[h]:.4f}" if h in by_heading else "" for h in columns), ""])
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ("  ".join([f"{line[0]:<{widths[0]}}", *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    return "\n".join(line.rstrip() for line in text)


def multiply_adds(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Multiplications with an addition in one forward of linear and convolutional layers and products of matrices."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def _measure(model: nn.Module, inputs: tuple[Any, ...], milliseconds: float) -> Measurement:
    parameters = list(model.parameters())
    state = model.state_dict().values()
    return Measurement(
        parameters=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        dense_bytes=sum(t.numel() * t.element_size() for t in state),
        file_bytes=sparse_bytes(model),
        multiply_adds=multiply_adds(model, inputs),
        milliseconds=milliseconds,
    )


def _milliseconds(model: Callable[..., Any], inputs: tuple[Any, ...], clock: Callable[[], float]) -> float:
    _wait(inputs)
    start = clock()
    model(*inputs)
    _wait(inputs)
    return 1000.0 * (clock() - start)


def _wait(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(value, Tensor) and value.is_cuda for value in inputs):
        torch.cuda.synchronize()
