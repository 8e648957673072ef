"""What ``decide="device"`` cannot do, refused by a sentence before the training starts (method §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.regularizers import Regularizer

if TYPE_CHECKING:
    from lightning_bsqh.options import BSQHOptions

_WAY_OUT = "or decide='host'"


def refusal(what: str, instead: str) -> str:
    """The sentence."""
    return f"decide='device' cannot be used with {what}: {instead}, {_WAY_OUT}."


def check_options(options: BSQHOptions, rule: Augmentation) -> None:
    """Raises ValueError unless the other options leave the host nothing to look at.

    Args:
        options: All options.
        rule: The rule for ε that they mean.
    """
    if options.sweep != "jacobi":
        raise ValueError(refusal(f"sweep={options.sweep!r}", "use sweep='jacobi'"))
    if options.batch_mode != "mini":
        raise ValueError(refusal(f"batch_mode={options.batch_mode!r}", "use batch_mode='mini'"))
    if options.trial_every != 1:
        raise ValueError(refusal(f"trial_every={options.trial_every!r}", "use trial_every=1"))
    if rule.on_device(torch.device("cpu"), torch.float64) is None:
        raise ValueError(
            refusal(
                f"augmentation={type(rule).__name__}(...), which has no on_device", "use Curvature() or Backtracking()"
            )
        )
    given = options.regularizer
    for each in given.values() if isinstance(given, Mapping) else [given]:
        _check_regularizer(each)


def _check_regularizer(regularizer: Regularizer | None) -> None:
    if regularizer is not None and not regularizer.acts_on_device:
        raise ValueError(
            refusal(
                f"regularizer={regularizer!r}, whose prox_ has not said that it takes ε from the device"
                " (acts_on_device)",
                "use one of those of lightning_bsqh",
            )
        )


def check_layers(layers: Sequence[Layer]) -> None:
    """Raises ValueError if a layer's true K has to be looked at."""
    bent = [layer.name for layer in layers if layer.is_safeguarded]
    if bent:
        more = f" and {len(bent) - 3} more" if len(bent) > 3 else ""
        raise ValueError(
            refusal(
                f"the layers {', '.join(bent[:3])}{more}, which are not known to be affine in their parameters, so that"
                " the host looks at each of their steps",
                "freeze them, or use Linear, convolutions, normalizations and embeddings of torch",
            )
        )


def check_devices(parameters: Sequence[Tensor]) -> None:
    """Raises ValueError if the parameters are on several devices."""
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1:
        raise ValueError(refusal(f"parameters on {' and '.join(devices)}", "put all of them on one device"))
