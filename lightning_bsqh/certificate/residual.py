"""The certificate: how far weights are from the maximum condition (method §9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_bsqh._validation import integer, number
from lightning_bsqh.certificate.result import LayerResidual, PMPResidual
from lightning_bsqh.certificate.sampling import sampled_residual
from lightning_bsqh.certificate.shares import Share, refuse_wrapped, share_of
from lightning_bsqh.method.hamiltonian import affine_hamiltonian, elementwise_gain
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.method.metric import Unreached, make_metric
from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.layers import Layer, LayerChoice, find_layers, only_trained
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.regularizers.by_name import bind
from lightning_bsqh.sweeps.base import check_loss


def pmp_residual(
    model: nn.Module,
    loss_closure: Callable[[], Tensor],
    *,
    regularizer: Regularizer | Mapping[str, Regularizer],
    epsilon: float = 1.0,
    metric: str | Mapping[str, MetricWeight] = "euclidean",
    regularize: Sequence[str] | None = None,
    layers: LayerChoice = "leaf",
    samples: int = 64,
    shard_samples: int | None = None,
) -> PMPResidual:
    """How far the weights of ``model`` are from maximizing every layer's (augmented) Hamiltonian.

    One forward and one backward at the current weights u give G = −∂L/∂u; the maximizer of
    K_ε(·; u) is the proximal point of the method (§3), evaluated in double precision. No other sweep is done.
    Parameters, their ``grad``, buffers, plain attributes and random generators are left as they were.

    This is exact for layers that are affine in their parameters: those of ``affine.AFFINE_MODULES`` (Linear,
    convolutions and their transposes, normalizations, Embedding), with states and adjoints held fixed. Every
    other layer is reported as ``linearized``: its numbers are those of the linearization of ⟨p, λ(x, ·)⟩ at u and
    certify nothing about the layer itself. Where such a layer can be run alone, ``sampled`` bounds its true residual
    from below: the largest gain of the true K that some points around u and the proximal points have shown.
    Only the type of a module is looked at: that a network uses the ``weight`` of a Linear also in some other way is not
    noticed.

    Where a Box with two ends or Discrete makes the admissible set compact, ``hamiltonian_gap`` is the residual of the
    maximum condition itself, without the augmentation.

    With an R that couples the layers, such as Cardinality, the total is exact, and a layer's numbers are its part
    of the global maximizer. Cardinality is taken with its target; during a ramp pass
    ``optimizer.regularizer.at(step, total_steps)``.

    Args:
        model: The network; its trainable parameters are u.
        loss_closure: Computes and returns the loss L(u), a scalar; it does not call backward. The
            certificate holds for the data that it looks at.
        regularizer: R with its factor, such as ``L0(rho=1e-5)``; ``L0(rho=0.0)`` for none; or several by name patterns,
            as for the optimizer, whose ``regularizer`` may be passed as it is.
        epsilon: ε > 0 of K_ε. A residual for one ε is zero for all larger ones, too.
        metric: D as ``"euclidean"``; or ``"rms"``, the D of an optimizer's first iteration, |G| + tiny; or D by
            the parameters' full names, such as ``optimizer.metric_weights()`` gives it.
        regularize: Which tensors R acts on, as for the optimizer.
        layers: Which modules are the layers, as for the optimizer.
        samples: Number of random points at which the true K of a layer that is not affine is evaluated, at least 0;
            always the same ones.
        shard_samples: In several processes, such as those of a DDP training, of which each has a share of the data:
            the number of samples whose mean loss ``loss_closure`` returns in this one. L is then the mean over the
            samples of all, and all processes have to take part; each gets the same result. An error in one is raised
            in all. None for a certificate of this process's data alone, whoever else there is.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``epsilon`` or ``metric`` is out of range, loss or gradient is not finite, the closure calls
            backward or does not depend on the model, the weights violate the regularizer's constraint, the model is
            sharded or wrapped in DistributedDataParallel, or the processes hold different weights.
        RuntimeError: If the regularizer's ``prox_`` does not maximize.
        ProcessError: If another process has raised.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: pass the network itself.")
    if not callable(loss_closure):
        raise TypeError(
            f"loss_closure must be a function without arguments that returns the loss, got {loss_closure!r}:"
            " pass for example lambda: criterion(model(x), y)."
        )
    share = share_of(model, shard_samples)
    with share.ending_all():
        share.check()
        refuse_wrapped(model)
        epsilon = number("epsilon", epsilon, low=0.0, open_low=True)
        samples = integer("samples", samples, low=0)
        found = only_trained(find_layers(model, regularize, layers))
        bound = bind(regularizer, found, regularize)
        parameters = {name: p for layer in found for name, p in layer.parameters.items()}
        bent = [layer for layer in found if layer.can_be_run and not layer.is_affine]
        boundaries = Boundaries(bent, (p.device for p in parameters.values())) if bent else None
        loss, gradients = _sweep(model, loss_closure, parameters, boundaries)
        loss, gradients = share.joined(loss, gradients, parameters, boundaries)
        at = _Point(parameters, gradients, metric, bound, found, epsilon)
        sampled = {} if boundaries is None else at.sampled_of(bent, parameters, boundaries, samples, share)
        return at.result(loss, sampled)


class _Point:
    """u, G, D and the maximizer û, and what they say about a layer."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        metric: str | Mapping[str, MetricWeight],
        regularizer: Regularizer,
        layers: Sequence[Layer],
        epsilon: float,
    ) -> None:
        names = list(parameters)
        chosen = {name for layer in layers for name in layer.regularized}
        weights = _doubles(parameters, regularizer, chosen)
        d = _metric(metric, weights, gradients, regularizer)
        regularizer = regularizer.held_in([d[n] for n in names if n in chosen])
        self._layers = layers
        self._weights = weights
        self._ascent = {n: torch.zeros_like(weights[n]) if g is None else -g for n, g in gradients.items()}
        self._metric = d
        self._regularizer = regularizer
        self._epsilon = epsilon
        #: Positions of the tensors that R acts on, in the order in which it gets them.
        self._positions = {name: i for i, name in enumerate(n for n in names if n in chosen)}
        # The very iteration of the training, on copies: the certificate is about what would be done next.
        self._maximiser = {name: w.clone() for name, w in weights.items()}
        iteration = Iteration(
            list(self._maximiser.values()),
            [gradients[n] for n in names],
            lambda pack, _: pack.side_by_side([d[n] for n in names]),
            regularizer,
            [i for i, n in enumerate(names) if n in chosen],
        )
        if iteration.tightened:
            raise ValueError(
                f"regularizer={regularizer!r}: the weights violate its constraint, so K is minus infinity there."
                " Project them first, or pass what holds now, such as optimizer.regularizer.at(step, total_steps)."
            )
        own = list(self._positions)
        #: argmax of H where there is one.
        extremes = regularizer.hamiltonian_maximizer([self._ascent[n] for n in own])
        self._extremes = {n: v for n, v in zip(own, extremes, strict=True) if v is not None}
        candidate = iteration.maximise_(epsilon)
        #: r, over all layers together.
        self.total = candidate.gain(epsilon)
        size = abs(float(candidate.slope)) + abs(candidate.penalty_change) + epsilon * float(candidate.tau)
        if not self.total >= -1e-9 * size - 1e-12 * abs(float(iteration.penalty)):
            raise RuntimeError(
                f"regularizer={regularizer!r}: its prox_ found a point with a K that is lower by {-self.total:.3g} than"
                " that of the weights themselves, so it does not maximize: check prox_ against penalty."
            )

    def result(self, loss: float, sampled: Mapping[str, float]) -> PMPResidual:
        """All that there is to say.

        Args:
            loss: L(u).
            sampled: Lower bounds of the true residual, of the layers that have one.
        """
        # The weights that R acts on, in the order in which the optimizer would hand them over.
        regularized = [self._weights[n] for layer in self._layers for n in layer.parameters if n in layer.regularized]
        return PMPResidual(
            total=self.total,
            hamiltonian=affine_hamiltonian(
                math.fsum(map(self.alignment, self._weights)), float(self._regularizer.penalty(regularized))
            ),
            hamiltonian_gap=self.hamiltonian_gap(list(self._weights)),
            loss=loss,
            epsilon=self._epsilon,
            coupled=self._regularizer.couples_tensors,
            layers={layer.name: self.layer(layer, sampled.get(layer.name)) for layer in self._layers},
        )

    def _restricted_to(self, names: Sequence[str]) -> Regularizer:
        """R as it acts on these tensors alone."""
        return self._regularizer.restricted_to([self._positions[name] for name in names])

    def alignment(self, name: str) -> float:
        """⟨G, u⟩ of one tensor."""
        return float(torch.dot(self._ascent[name].flatten(), self._weights[name].flatten()))

    def hamiltonian_gap(self, names: Sequence[str]) -> float | None:
        """Max H − H(u) over those of the tensors for which there is a maximum, None if there is none of them."""
        names = [n for n in names if n in self._extremes]
        if not names:
            return None
        u, v = [self._weights[n] for n in names], [self._extremes[n] for n in names]
        slopes = [float((self._ascent[n] * (b - a)).sum()) for n, a, b in zip(names, u, v, strict=True)]
        regularizer = self._restricted_to(names)
        return math.fsum(slopes) - float(regularizer.penalty(v) - regularizer.penalty(u))

    def sampled_of(
        self,
        layers: Sequence[Layer],
        parameters: Mapping[str, Tensor],
        boundaries: Boundaries,
        samples: int,
        share: Share,
    ) -> dict[str, float]:
        """The largest gain of the true K among sampled points, for those of the layers that can be run alone.

        Args:
            layers: Those that are not affine.
            parameters: The network's own tensors, which hold u; they do again afterwards.
            boundaries: The layers' inputs and adjoints.
            samples: Number of random points.
            share: Means over the processes.
        """
        known = [layer for layer in layers if share.everywhere(bool(boundaries.calls(layer)))]

        def alignment(layer: Layer) -> float:
            return share.mean(boundaries.alignment(layer))

        return {layer.name: self._sampled(layer, parameters, partial(alignment, layer), samples) for layer in known}

    def _sampled(
        self, layer: Layer, parameters: Mapping[str, Tensor], alignment: Callable[[], float], samples: int
    ) -> float:
        names = list(layer.parameters)
        own = self._regularizer.separate([self._weights[n] for n in self._positions])
        regularizers = [own[self._positions[n]] if n in self._positions else None for n in names]
        base = [self._weights[n] for n in names]
        before = alignment()
        kept = [parameters[n].detach().clone() for n in names]

        def gain(point: Sequence[Tensor]) -> float:
            for name, v in zip(names, point, strict=True):
                parameters[name].data.copy_(v)
            value = alignment() - before
            for v, u, name, r in zip(point, base, names, regularizers, strict=True):
                d = self._metric[name]
                value -= self._epsilon * float((d * (v - u).square()).sum())
                value -= 0.0 if r is None else float(r.penalty([v]) - r.penalty([u]))
            return value

        try:
            return sampled_residual(
                base,
                [self._ascent[n] for n in names],
                [self._metric[n] for n in names],
                regularizers,
                self._epsilon,
                gain,
                samples,
                torch.Generator().manual_seed(0),
            )
        finally:
            for name, value in zip(names, kept, strict=True):
                parameters[name].data.copy_(value)

    def layer(self, layer: Layer, sampled: float | None) -> LayerResidual:
        parts = [self._gains(name, name in layer.regularized) for name in layer.parameters]
        weights = [n for n in layer.parameters if n in layer.regularized]
        penalty = float(self._restricted_to(weights).penalty([self._weights[n] for n in weights])) if weights else 0.0
        return LayerResidual(
            name=layer.name,
            residual=math.fsum(total for _, total in parts),
            hamiltonian=affine_hamiltonian(math.fsum(self.alignment(n) for n in layer.parameters), penalty),
            hamiltonian_gap=self.hamiltonian_gap(list(layer.parameters)),
            linearized=not layer.is_affine,
            sampled=sampled,
            gains=torch.cat([gains.cpu() for gains, _ in parts]),
        )

    def _gains(self, name: str, regularized: bool) -> tuple[Tensor, float]:
        """The gain of every weight of one tensor, flat, and of all of them together."""
        u, maximiser = self._weights[name], self._maximiser[name]
        change: Tensor | float | None = 0.0
        own = self._restricted_to([name]) if regularized else None
        if own is not None:
            before, after = own.elementwise(u), own.elementwise(maximiser)
            change = None if before is None or after is None else after - before
        gains = elementwise_gain(
            self._ascent[name], maximiser - u, 0.0 if change is None else change, self._metric[name], self._epsilon
        )
        total = float(gains.sum())
        if change is None:
            assert own is not None
            total -= float(own.penalty([maximiser]) - own.penalty([u]))
            gains = torch.full_like(gains, total)
        return gains.flatten(), total


def _sweep(
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
        name: None if g is None else _double(g) for name, g in zip(parameters, found, strict=True)
    }
    for name, gradient in gradients.items():
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ValueError(f"The gradient of {name} is not finite, so there is no certificate: check data and loss.")
    return value, gradients


def _doubles(parameters: Mapping[str, Tensor], regularizer: Regularizer, chosen: set[str]) -> dict[str, Tensor]:
    """The weights in double precision, admissible if those given are so in their own."""
    weights = {name: _double(p) for name, p in parameters.items()}
    own = [parameters[n].detach() for n in parameters if n in chosen]
    if regularizer.admits(own):
        # The end of a box or a level, rounded to single precision, may lie beside it in double precision.
        regularizer.project_([weights[n] for n in parameters if n in chosen], [1.0] * len(own))
    return weights


def _double(tensor: Tensor) -> Tensor:
    """A dense copy in double precision, on the CPU where the device has none."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64, copy=True)


def _metric(
    metric: object, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], regularizer: Regularizer
) -> dict[str, MetricWeight]:
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
