"""D of the certificate, as its caller has given it (method §9)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_bsqh._validation import number
from lightning_bsqh.method.metric import Unreached, make_metric
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.regularizers import MetricWeight, Regularizer


def metric_at(
    metric: object, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], regularizer: Regularizer
) -> dict[str, MetricWeight]:
    """D by the parameters' names.

    Args:
        metric: The name of a rule, such as ``"rms"``, or D itself by the parameters' names.
        weights: u in double precision, by the parameters' names.
        gradients: −G for each.
        regularizer: R; where it couples tensors, those that no gradient reaches stand against the others.

    Raises:
        TypeError: If ``metric`` is neither.
        ValueError: If it is no rule's name, lacks a parameter, names something else or has values that are no D.
    """
    if isinstance(metric, Mapping):
        missing, unknown = sorted(weights.keys() - metric.keys()), sorted(metric.keys() - weights.keys())
        if missing or unknown:
            what = f"lacks {missing[0]!r}" if missing else f"names {unknown[0]!r}, which is no trained parameter"
            raise ValueError(
                f"metric {what}: give D for every trained parameter by its full name and for nothing else."
            )
        return {name: _positive(name, metric[name], weights[name]) for name in weights}
    if not isinstance(metric, str):
        raise TypeError(f"metric must be a name or D by the parameters' names, got {type(metric).__name__}.")
    rule = make_metric(metric)
    result: dict[str, MetricWeight] = {}
    for name, w in weights.items():
        pack = Pack([w], [0])
        unreached = Unreached(low={0} if regularizer.couples_tensors else set())
        weight = rule.weight(pack, pack.gradients([gradients[name]]), [{}], unreached)
        result[name] = weight.view(w.shape) if isinstance(weight, Tensor) else weight
    return result


def _positive(name: str, value: MetricWeight, weight: Tensor) -> MetricWeight:
    if not isinstance(value, Tensor):
        return number(f"metric[{name!r}]", value, low=0.0, open_low=True)
    if value.shape not in (weight.shape, torch.Size()):
        raise ValueError(
            f"metric[{name!r}] must have the shape {tuple(weight.shape)} of the parameter or be a scalar, got"
            f" {tuple(value.shape)}."
        )
    if not bool(((value > 0) & torch.isfinite(value)).all()):
        raise ValueError(f"metric[{name!r}] must be positive and finite everywhere; raise its zeros to a tiny number.")
    return value.detach().to(weight)
