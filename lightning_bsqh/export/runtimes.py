"""Networks for other runtimes: ONNX and torch.export, run and compared before a file gets its name."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh.export.comparison import as_inputs, difference, evaluating, outputs_of, tolerance
from lightning_bsqh.export.finished_file import check_free, finished_file

_INSTALL = 'pip install "lightning-bsqh[export]"'


@dataclass(frozen=True)
class Exported:
    """A file that has been written.

    Attributes:
        path: The file.
        bytes: Its size.
        batch_size: The only batch size that it takes; None for any.
        difference: Largest difference of its outputs, as a share of the largest output.
    """

    path: Path
    bytes: int
    batch_size: int | None
    difference: float


def to_onnx(model: nn.Module, example_inputs: Any, path: str | Path, *, overwrite: bool = False) -> Exported:
    """Writes a network as one ONNX file, and runs it with ONNX Runtime before the file gets its name.

    Args:
        model: A network on the CPU, such as what ``shrink`` gives.
        example_inputs: The argument of its forward, or a tuple of tensors. The first dimension of each is taken for the
            batch and may then be of any size, where the network allows that.
        path: The file to write.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        ValueError: If the model does not run, or cannot be exported.
        RuntimeError: If ONNX Runtime gives other outputs than torch (by more than 1e-4 in float32), or torch is too
            old.
        FileExistsError: If the file exists and ``overwrite`` is false.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is not installed.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise ModuleNotFoundError(f"ONNX needs onnx, onnxscript and onnxruntime: {_INSTALL}")
    import onnxruntime

    _needs_newer_torch("to_onnx", "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters)

    def write(inputs: tuple[Tensor, ...], shapes: Any, file: Path) -> None:
        names = _argument_names(model, len(inputs))
        options: dict[str, Any] = {"dynamo": True, "external_data": False, "input_names": names, "verbose": False}
        torch.onnx.export(model, inputs, file, dynamic_shapes=shapes, **options)

    def run(file: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        arrays = [value.detach().numpy() for value in inputs]
        return [torch.as_tensor(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return _export(model, example_inputs, Path(path), overwrite, write, run)


def to_pt2(model: nn.Module, example_inputs: Any, path: str | Path, *, overwrite: bool = False) -> Exported:
    """Writes a network by torch.export, for ``torch.export.load(path).module()``; it is loaded and run to be compared.

    Arguments and errors are those of :func:`to_onnx`; no further package is needed. The file should end in ``.pt2``.
    """
    _needs_newer_torch("to_pt2", getattr(torch.export.ExportedProgram.example_inputs, "fset", None) is not None)

    def write(inputs: tuple[Tensor, ...], shapes: Any, file: Path) -> None:
        buffer = io.BytesIO()  # else the archive would be called by the temporary name
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        # They would be the only pickle in the file.
        program.example_inputs = None
        torch.export.save(program, buffer)
        file.write_bytes(buffer.getvalue())

    def run(file: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return outputs_of(_Loaded(torch.export.load(file).module()), inputs)

    return _export(model, example_inputs, Path(path), overwrite, write, run)


def _needs_newer_torch(function: str, is_new_enough: bool) -> None:
    if not is_new_enough:
        raise RuntimeError(f"{function} needs a newer torch than {torch.__version__}: pip install -U torch.")


class _Loaded(nn.Module):
    """An exported program, whose own module refuses to be put into evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._run = [module]

    def forward(self, *inputs: Tensor) -> Any:
        return self._run[0](*inputs)


def _export(
    model: nn.Module,
    example_inputs: Any,
    path: Path,
    overwrite: bool,
    write: Callable[[tuple[Tensor, ...], Any, Path], None],
    run: Callable[[Path, tuple[Tensor, ...]], list[Tensor]],
) -> Exported:
    inputs = as_inputs(example_inputs)
    if not all(isinstance(value, Tensor) and value.device.type == "cpu" for value in inputs):
        raise ValueError("example_inputs must be tensors on the CPU for an export to a file.")
    check_free(path, overwrite)
    outputs_of(model, inputs)
    with finished_file(path, overwrite) as temporary, evaluating(model), _quiet():
        fixed = _write(inputs, temporary, write)
        # Another batch size than the one that was exported.
        tested = [inputs] if fixed else [inputs, tuple(torch.cat([value, value, value]) for value in inputs)]
        gap = max(_check(model, run(temporary, values), values) for values in tested)
        size = temporary.stat().st_size
    return Exported(path, size, len(inputs[0]) if fixed else None, gap)


def _write(inputs: tuple[Tensor, ...], file: Path, write: Callable[..., None]) -> bool:
    """Whether the file takes only the batch size of the inputs."""
    if all(value.dim() for value in inputs) and len({len(value) for value in inputs}) == 1:
        # Older versions of torch have no AUTO.
        batch = getattr(torch.export.Dim, "AUTO", None) or torch.export.Dim("batch")
        # torch.export takes a batch of one for a constant.
        several = tuple(torch.cat([value, value]) for value in inputs)
        try:
            write(several, tuple({0: batch} for _ in inputs), file)
            return False
        except Exception:  # whatever the exporter raises: it is tried with the sizes as they are
            file.unlink(missing_ok=True)
    try:
        write(inputs, None, file)
    except Exception as error:
        # Its message goes on for pages, and that of torch.onnx hides the reason.
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The model cannot be exported: {reason} (torch.export must be able to trace its forward, without control"
            " flow that depends on values)."
        ) from error
    return True


def _check(model: nn.Module, outputs: list[Tensor], inputs: tuple[Tensor, ...]) -> float:
    expected = outputs_of(model, inputs)
    gap, allowed = difference(expected, outputs), 10.0 * tolerance(expected)
    if not gap <= allowed:
        raise RuntimeError(f"The exported network's outputs differ by {gap:.1e}; {allowed:.0e} is allowed.")
    return gap


def _argument_names(model: nn.Module, count: int) -> list[str]:
    names = list(inspect.signature(model.forward).parameters)
    return names[:count] if len(names) >= count else [f"input_{i}" for i in range(count)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # Of what it cannot trace torch.export prints the graph.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
