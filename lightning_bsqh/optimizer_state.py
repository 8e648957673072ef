"""What a state of the optimizer has to be before any of it is taken over (method §7)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh._validation import shown
from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.trial_schedule import TrialSchedule
from lightning_bsqh.network.sharding import local_part

#: Of the entry ``bsqh``; a later version that changes its meaning raises it.
FORMAT = 1


def check_state(
    state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], metric: str, rule: Augmentation
) -> Augmentation:
    """Checks all of a state against the optimizer that is to take it.

    Args:
        state: What ``state_dict`` gave.
        groups: The optimizer's parameter groups.
        metric: The name of its metric.
        rule: Its rule for ε; not changed.

    Returns:
        A copy of the rule in the state that was saved.

    Raises:
        ValueError: If anything does not fit; the message names it.
    """
    own = state.get("bsqh")
    if not isinstance(own, Mapping):
        raise ValueError(
            "state_dict is not that of a BSQHOptimizer (it has no entry 'bsqh'): load the model's weights only and"
            " start the optimizer anew."
        )
    if own.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"state_dict has the format {own['format']} of a later version of lightning-bsqh; this one reads up to"
            f" {FORMAT}: upgrade the package."
        )
    for name in ("step", "skipped"):
        _count(name, own.get(name))
    if own.get("metric", metric) != metric:
        raise ValueError(
            f"state_dict was saved with metric={own['metric']!r}, but this optimizer has metric={metric!r}: choose the"
            " same."
        )
    _check_schedule(own.get("trial_schedule", {}))
    _check_tensors(state, groups)
    return _loaded(rule, own)


def _count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"state_dict['bsqh'][{name!r}] must be an integer of at least 0, got {shown(value)}.")


def _check_schedule(saved: Any) -> None:
    try:
        TrialSchedule(1).load_state_dict(saved)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"state_dict['bsqh']['trial_schedule'] is damaged: {error}.") from None


def _loaded(rule: Augmentation, own: Mapping[str, Any]) -> Augmentation:
    saved = own.get("augmentation")
    kind = own.get("rule", type(rule).__name__)
    if kind != type(rule).__name__ or not isinstance(saved, Mapping):
        raise ValueError(
            f"state_dict was saved with the rule augmentation={kind}, but this optimizer has"
            f" {type(rule).__name__}: choose the same rule, or start the optimizer anew."
        )
    loaded = copy.deepcopy(rule)
    try:
        loaded.load_state_dict(dict(saved))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state_dict['bsqh']['augmentation'] does not fit {kind}: {error}.") from None
    epsilon = saved.get("epsilon", loaded.epsilon)
    if not (isinstance(epsilon, (int, float)) and math.isfinite(epsilon) and epsilon > 0.0):
        raise ValueError(f"state_dict: epsilon must be a positive number, got {shown(epsilon)}.")
    return loaded


def _check_tensors(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Shapes and values of what is remembered of each parameter, which the groups list in their order."""
    saved_groups, entries = state.get("param_groups", []), state.get("state", {})
    sizes, saved_sizes = [len(g["params"]) for g in groups], [len(g["params"]) for g in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"state_dict has parameter groups of the sizes {saved_sizes}, this optimizer of {sizes}: it is that of"
            " another network."
        )
    for group, saved in zip(groups, saved_groups, strict=True):
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            for name in ("mean_square", "mean", "before"):
                if (value := entries.get(key, {}).get(name)) is not None:
                    _check_shape(name, value, parameter, str(group["name"]))
            if (mean_square := entries.get(key, {}).get("mean_square")) is not None:
                _check_mean_square(mean_square, str(group["name"]))
            if (mean := entries.get(key, {}).get("mean")) is not None:
                _check_mean(mean, str(group["name"]))


def _check_shape(name: str, value: Any, parameter: Tensor, layer: str) -> None:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else shown(value)
        raise ValueError(
            f"state_dict: {name} of a parameter in {layer!r} has the shape {shape}, the parameter"
            f" {tuple(parameter.shape)}: it is that of another network."
        )


def _check_mean(mean: Tensor, layer: str) -> None:
    if not bool(torch.isfinite(local_part(mean)).all()):
        raise ValueError(
            f"state_dict: mean of a parameter in {layer!r} is not finite, so no step could be made along it: the file"
            " is damaged, or from a training that had failed."
        )


def _check_mean_square(mean: Tensor, layer: str) -> None:
    own = local_part(mean)
    if not bool((torch.isfinite(own) & (own >= 0)).all()):
        raise ValueError(
            f"state_dict: mean_square of a parameter in {layer!r} is not finite or negative, so the metric of no step"
            " could be made of it: the file is damaged, or from a training that had failed."
        )
