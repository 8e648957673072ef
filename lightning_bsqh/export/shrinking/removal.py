"""Removes what a sparse network no longer needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, fx, nn

from lightning_bsqh.export.comparison import as_inputs, difference, outputs_of, tolerance
from lightning_bsqh.export.shrinking.flow import Flow
from lightning_bsqh.export.shrinking.layers import Embedding, GroupedLayer, MixingLayer
from lightning_bsqh.export.shrinking.network import Network
from lightning_bsqh.export.shrinking.plan import Plan
from lightning_bsqh.export.shrinking.report import Kept, LayerChange, ShrinkReport
from lightning_bsqh.export.shrinking.rules import FUNCTIONS, METHODS, MODULES

_META = "lightning_bsqh.shrink_report"


def shrink(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A network of fewer channels and neurons that gives the same in evaluation mode.

    Filters and neurons whose weights are all zero go, and so does what only they read, and what nobody reads. What a
    zero filter still gives (its bias, the shift of a BatchNorm, after activations) is folded into the layers that read
    it, exactly. Where zeros surround it (padding), one constant channel stays for all. What cannot be removed stays,
    and :func:`shrink_report` says why.

    Args:
        model: A network whose forward torch.fx can trace; neither it nor its modes change. Outputs, values and
            parameters are taken to be finite.
        example_inputs: The argument of its forward, or a tuple of several. Tensors of any batch size; other arguments
            are left to their defaults.

    Returns:
        A torch.fx.GraphModule in evaluation mode, with the names of the model's modules; a copy throughout.

    Raises:
        ValueError: If the model does not run on the inputs, cannot be traced, or draws at random.
        RuntimeError: If the outputs on the example inputs differ by more than rounding (relative to the largest output,
            or to 1 where that is smaller: 1e-12 in float64, 1e-5 in float32).
    """
    inputs = as_inputs(example_inputs)
    before = outputs_of(model, inputs)
    network = Network(model, inputs)
    flow = Flow(network, MODULES, FUNCTIONS, METHODS)
    plan = Plan(flow.units, flow.sites, flow.tensors())
    parameters = _count(network.graph_module)
    for site in flow.sites:
        site.rebuild(plan)
    shrunk = network.graph_module
    shrunk.recompile()
    gap = difference(before, outputs_of(shrunk, inputs))
    allowed = tolerance(before)
    if not gap <= allowed:
        _explain(model, inputs, before, gap, allowed)
    layers = [site for site in flow.sites if isinstance(site, (MixingLayer, GroupedLayer, Embedding))]
    shrunk.meta[_META] = ShrinkReport(
        [_change(network, layer, plan) for layer in layers],
        [kept for layer in layers for kept in _kept(network, layer, plan)] + _not_looked_into(flow),
        (parameters, _count(shrunk)),
        gap,
        allowed,
    )
    return shrunk


def shrink_report(network: nn.Module) -> ShrinkReport:
    """What :func:`shrink` has removed from a network, and what it could not.

    Raises:
        ValueError: If the network does not come from there.
    """
    report = network.meta.get(_META) if isinstance(network, fx.GraphModule) else None
    if not isinstance(report, ShrinkReport):
        raise ValueError(f"network must be what shrink has returned, got {type(network).__name__}.")
    return report


def _explain(model: nn.Module, inputs: tuple[Any, ...], before: list[Tensor], gap: float, allowed: float) -> None:
    if difference(before, outputs_of(model, inputs)) > allowed:
        raise ValueError("The model gives other outputs on the same inputs each time, so nothing can be compared.")
    raise RuntimeError(
        f"The smaller network's outputs differ by {gap:.1e} of the largest one ({allowed:.0e} is allowed), so it is not"
        " returned. In float32, try model.double(): if that works it is rounding; if not, please report it."
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _not_looked_into(flow: Flow) -> list[Kept]:
    """Zero rows of the weights of modules that nothing could be removed from."""
    found = []
    for name, reason in flow.unfollowed.items():
        module = flow.network.module(name)
        for parameter_name, weight in module.named_parameters():
            count = int((weight == 0).flatten(1).all(1).sum()) if weight.dim() >= 2 else 0
            if count:
                kind = type(module).__name__
                found.append(Kept(f"{name}.{parameter_name}", "rows", count, f"belongs to a {kind}, {reason}"))
    return found


_Layer = MixingLayer | GroupedLayer | Embedding


def _kind(network: Network, layer: _Layer) -> str:
    module = network.module(layer.name)
    return {nn.Linear: "neurons", nn.Embedding: "columns"}.get(type(module), "filters")


def _change(network: Network, layer: _Layer, plan: Plan) -> LayerChange:
    sizes = [
        (0, 0) if ids is None else (len(ids), len(plan.kept_positions(ids)))
        for ids in (layer.outputs.ids, layer.inputs)
    ]
    return LayerChange(layer.name, _kind(network, layer), *sizes)


def _kept(network: Network, layer: _Layer, plan: Plan) -> list[Kept]:
    stay = layer.outputs.ids[layer.zero_outputs & ~plan.removed(layer.outputs.ids)]
    reasons = Counter(plan.reason(unit) for unit in stay.tolist())
    return [Kept(layer.name, _kind(network, layer), count, reason) for reason, count in reasons.items()]
