"""Whether two networks give the same, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Of the largest output, or of 1 where that is smaller.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """The arguments of a forward: a tuple or list as it is, anything else as the only one.

    Raises:
        ValueError: If there is no tensor among them, or none with an element: nothing could be compared.
    """
    inputs = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    if not any(isinstance(value, Tensor) for value in inputs):
        raise ValueError(f"example_inputs must be a tensor or a tuple with at least one, got {inputs!r:.80}.")
    if not any(value.numel() for value in inputs if isinstance(value, Tensor)):
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, Tensor)]
        raise ValueError(
            f"example_inputs must hold at least one sample to compare outputs on, got the shapes {shapes}."
        )
    return inputs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, without gradients, and puts every module back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def outputs_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a model gives, in evaluation mode.

    Raises:
        TypeError: If the model is none.
        ValueError: If the model does not run on the inputs.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}.")
    with evaluating(model):
        try:
            return list(_tensors(model(*(value.clone() if isinstance(value, Tensor) else value for value in inputs))))
        except Exception as error:  # whatever the user's forward raises
            shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in inputs]
            raise ValueError(f"The model does not run on example_inputs of the shapes {shapes}: {error}") from error


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference, as a share of the largest output (of 1 where that is smaller); infinite if shapes differ.

    Equal infinities and NaN in the same places count as equal.
    """
    if [t.shape for t in first] != [t.shape for t in second]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(first, second, strict=True) if a.numel()), default=0.0)


def tolerance(outputs: list[Tensor]) -> float:
    """What rounding may change, by the least exact dtype of the outputs."""
    return max((TOLERANCES.get(output.dtype, 0.0) for output in outputs), default=0.0)


def _difference(first: Tensor, second: Tensor) -> float:
    a, b = (t.detach().cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (first, second))
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max()
    finite = a.abs()[a.isfinite()]
    return float(gap / max(1.0, float(finite.max()) if len(finite) else 1.0))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
