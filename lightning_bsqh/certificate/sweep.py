"""The certificate's only sweep: loss and gradients in double precision, without a trace (method §9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import check_loss


def loss_and_gradients(
    model: nn.Module,
    loss_closure: Callable[[], Tensor],
    parameters: Mapping[str, Tensor],
    boundaries: Boundaries | None,
) -> tuple[float, dict[str, Tensor | None]]:
    """L(u) and −G by one forward and one backward, leaving no trace."""
    devices = sorted({p.device for p in parameters.values()}, key=str)
    kept = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in kept:
            p.grad = None
        # Also where the caller has switched gradients off, as Lightning does in validation.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            without_trace(model, RandomState.capture(devices), None, devices),
        ):
            with recording(boundaries):
                loss = check_loss(loss_closure(), "loss_closure")
            if any(p.grad is not None for p, _ in kept):
                raise ValueError("loss_closure called backward: let it compute and return the loss only.")
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for p, gradient in kept:
            p.grad = gradient
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ValueError(f"loss_closure returned {value}: there is no certificate where the loss is not finite.")
    if all(g is None for g in found):
        raise ValueError(
            "loss_closure returned a loss that depends on no trainable parameter of model: evaluate this very model."
        )
    gradients: dict[str, Tensor | None] = {
        name: None if g is None else in_double_precision(g) for name, g in zip(parameters, found, strict=True)
    }
    for name, gradient in gradients.items():
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ValueError(f"The gradient of {name} is not finite, so there is no certificate: check data and loss.")
    return value, gradients


def in_double_precision(tensor: Tensor) -> Tensor:
    """A dense copy in double precision, on the CPU where the device has none."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64, copy=True)
