"""The certificate: how far weights are from the maximum condition (method §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from lightning_bsqh._validation import integer, number
from lightning_bsqh.certificate.point import Point
from lightning_bsqh.certificate.result import PMPResidual
from lightning_bsqh.certificate.shares import refuse_wrapped, share_of
from lightning_bsqh.certificate.sweep import loss_and_gradients
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import LayerChoice, find_layers, only_trained
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.regularizers.by_name import bind


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
        loss, gradients = loss_and_gradients(model, loss_closure, parameters, boundaries)
        loss, gradients = share.joined(loss, gradients, parameters, boundaries)
        at = Point(parameters, gradients, metric, bound, found, epsilon)
        sampled = {} if boundaries is None else at.sampled_of(bent, parameters, boundaries, samples, share)
        return at.result(loss, sampled)
