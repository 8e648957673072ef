"""One iteration's w, G and D, and the candidates û made of them (method §2, §3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_bsqh.method.candidate import Candidate, LayerTerms
from lightning_bsqh.method.hamiltonian import affine_hamiltonian, augmented_gain, squared_length
from lightning_bsqh.method.safeguard import Safeguard, TrueHamiltonian
from lightning_bsqh.network.packing import Pack, make_packs
from lightning_bsqh.regularizers import MetricWeight, Regularizer

#: Gives D of one pack's parameters: shape ``[n]``, or a scalar.
PackMetric = Callable[[Pack, Tensor], MetricWeight]
#: Gives −Ḡ of one pack's parameters: shape ``[n]``.
PackMean = Callable[[Pack, Tensor], Tensor]


class Iteration:
    """Makes candidates from one forward and adjoint sweep, and goes back where none is good.

    The parameters themselves hold whatever point is looked at; w is kept as a copy. Nothing here waits for the device:
    what a decision needs is a scalar on the device until it is read.

    Args:
        parameters: All tensors that are trained; they hold w.
        gradients: −G for each, None where the loss does not depend on it.
        metric: Computes D. Called anew for every candidate, so that D takes no memory during the sweeps.
        regularizer: R as it holds in this iteration.
        regularized: Positions of the tensors that R acts on.
        checks: The layers that are not affine in their parameters and can be run alone.
        packs: The parameters side by side, with the regularized ones first; None makes them.
        unreached: Positions of the parameters that no gradient had reached before, each with whether one does now; None
            where only the device knows.
        keeps_minimum: Whether to give R more work from the start, so that it leaves every tensor what it has to keep.
        looks_at_weights: Whether ‖G/D‖ (where w is not zero) and ‖w‖ are wanted, too.
        mean: Gives −Ḡ, along which candidates are made until :meth:`follow_own_gradient`; None takes −G. Called anew
            for every candidate, as ``metric`` is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        metric: PackMetric,
        regularizer: Regularizer,
        regularized: Sequence[int],
        checks: Sequence[TrueHamiltonian] = (),
        packs: Sequence[Pack] | None = None,
        unreached: Mapping[int, bool | None] | None = None,
        keeps_minimum: bool = False,
        looks_at_weights: bool = False,
        mean: PackMean | None = None,
    ) -> None:
        self.parameters = parameters
        self.gradients = gradients
        self.packs = list(packs) if packs is not None else make_packs(parameters, set(regularized))
        self._checks = checks
        self._metric = metric
        self._regularizer = regularizer
        self._regularized = regularized
        #: w of every pack, shape ``[n]``.
        self.start = self._base = [pack.values() for pack in self.packs]
        #: −G of every pack, shape ``[n]``.
        self.slopes = [pack.gradients(gradients) for pack in self.packs]
        if regularizer.depends_on_metric:
            metrics = self._of_parameters(self._metrics())
            regularizer = self._regularizer = regularizer.held_in([metrics[i] for i in regularized])
        self._safeguard = Safeguard(parameters, regularizer, regularized)
        self._on_vector: Regularizer | None = None
        self._acting = regularizer
        if len(self.packs) == 1 and regularized:
            self._join(keeps_minimum)
        self._layer_base: Sequence[Tensor] = ()
        self._layer_metric: Sequence[MetricWeight] = ()
        self._layer_regularizers: dict[int, Regularizer] = {}
        self._excess = 0.0
        self._unreached = unreached or {}
        self._looks_at_weights = looks_at_weights
        self._mean = mean
        self._of_gradient: dict[str, Tensor | float] = {}
        self._enough: Tensor | bool = True
        base = self._weights(self._base)
        #: ρR at the base point, a scalar.
        self.penalty: Tensor | float = self._acting.penalty(base)
        #: Whether the w of the start satisfies the constraint; it does not if that has just been tightened.
        self.admitted: Tensor | bool = self._admits(base)

    @property
    def tightened(self) -> bool:
        """Whether w violates a constraint: one that has just been tightened."""
        return not bool(self.admitted)

    def scalars(self) -> dict[str, Tensor | float]:
        """What has to be read of w and G, by name, once there is a candidate.

        ``length`` is Σ G²/(4D), ε²τ of the step without a regularizer; ``peak`` the largest |G|; ``admitted`` whether w
        satisfies the constraint; ``reached/<position>`` whether a gradient reaches a parameter for the first time; and
        where they are wanted, ``direction`` ‖G/D‖² of the weights that are not zero, and ``weights`` ‖w‖².
        """
        return {"admitted": self.admitted, "enough": self._enough, **self._of_gradient}

    def follow_own_gradient(self) -> None:
        """From now on candidates are made of the batch's own G: for a large enough ε it lowers the batch's own J."""
        self._mean = None

    def keep_minimum(self) -> None:
        """From now on R does what it takes for every tensor to keep its minimum; what it made left one too little."""
        self._join(keeps_minimum=True)

    def _join(self, keeps_minimum: bool) -> None:
        """Lets R act on the one vector of all tensors, if it can."""
        self._on_vector = self._joined_regularizer(keeps_minimum)
        self._acting = self._regularizer if self._on_vector is None else self._on_vector

    def _admits(self, base: Sequence[Tensor]) -> Tensor | bool:
        return self._acting.admits(base)

    def _joined_regularizer(self, keeps_minimum: bool) -> Regularizer | None:
        sizes = self.packs[0].sizes[: len(self._regularized)]
        return self._regularizer.on_vector_with_minimum(sizes) if keeps_minimum else self._regularizer.on_vector(sizes)

    # ------------------------------------------------------------------ jacobi

    def maximise_(self, epsilon: float) -> Candidate:
        """Puts û_l = argmax K_{ε,l}(·; w_l) into the parameters, all layers from the same w and G (jacobi)."""
        metric, means = self._metrics(), self._means()
        directions = self._directions(metric, means)
        points = [torch.add(w, s, alpha=-0.5 / epsilon) for w, s in zip(self._base, directions, strict=True)]
        del directions
        weights = self._weights(points)
        self._acting.prox_(weights, self._weights(metric), epsilon)
        self._enough = self._acting.leaves_enough(weights)
        self.put_(points)
        if not self._checks:
            return self._measure(points, metric, means=means)
        proposed = self._measure(points, metric, means=means).tau
        return replace(self._safeguarded_(metric, epsilon), proposed=proposed)

    def _directions(self, metric: Sequence[MetricWeight], means: Sequence[Tensor]) -> list[Tensor]:
        """−Ḡ/D of every pack; the first time G is looked at, too."""
        is_own = self._mean is None
        if is_own or not self._of_gradient:
            own = [g / d for g, d in zip(self.slopes, metric, strict=True)]
            if not self._of_gradient:
                self._look_at(own)
            if is_own:
                return own
        return [m / d for m, d in zip(means, metric, strict=True)]

    def _look_at(self, directions: Sequence[Tensor]) -> None:
        lengths = [torch.dot(g, s) for g, s in zip(self.slopes, directions, strict=True)]
        peaks = [torch.linalg.vector_norm(g, math.inf) for g in self.slopes if g.numel()]
        self._of_gradient = {"length": _total(lengths) * 0.25, "peak": _largest(peaks)}
        if self._looks_at_weights:
            # Where w is zero the step mostly ends at zero again, and tells nothing of how far the network moves.
            moving = [s.masked_fill(w == 0.0, 0.0) for s, w in zip(directions, self.start, strict=True)]
            self._of_gradient["direction"] = _total([torch.dot(s, s) for s in moving])
            self._of_gradient["weights"] = _total([torch.dot(w, w) for w in self.start])
        for i, known in self._unreached.items():
            gradient = self.gradients[i]
            on_device = 0.0 if gradient is None else gradient.any()
            self._of_gradient[f"reached/{i}"] = on_device if known is None else float(known)

    def _safeguarded_(self, metric: Sequence[MetricWeight], epsilon: float) -> Candidate:
        base, weights, means = (self._of_parameters(vectors) for vectors in (self._base, metric, self._means()))
        excess = self._safeguard.apply_(self._checks, base, self.gradients, weights, epsilon, means)
        candidate = self._measure(self.values(), metric, excess)
        if self._regularizer.couples_tensors and not self.tightened and not candidate.gain(epsilon) >= 0.0:
            # What one layer gives up for another is worth it in the linearization, but not in the true K.
            self.restore_()
            candidate = self._measure(self._base, metric)
        return candidate

    # ------------------------------------------------------------------ gauss-seidel

    def begin_layers(self) -> None:
        """Prepares :meth:`maximise_layer_`, with the jacobi proposal of :meth:`maximise_` in the parameters."""
        self._layer_metric = self._of_parameters(self._metrics())
        self._layer_base = self._of_parameters(self._base)
        parts = self._regularizer.separate([self.parameters[i].detach() for i in self._regularized])
        self._layer_regularizers = dict(zip(self._regularized, parts, strict=True))
        self._excess = 0.0

    def restore_layer_(self, positions: Sequence[int]) -> None:
        """Puts w_l back into one layer's tensors."""
        for i in positions:
            self.parameters[i].copy_(self._layer_base[i])

    def maximise_layer_(
        self, positions: Sequence[int], gradients: Sequence[Tensor], epsilon: float, check: TrueHamiltonian | None
    ) -> None:
        """Puts û_l = argmax K_{ε,l}(·; w_l) into one layer's tensors, which hold w_l (gauss-seidel).

        Args:
            positions: Where the layer's tensors are among all parameters.
            gradients: −G_l for each of them, at the layer's present input.
            epsilon: The augmentation parameter.
            check: Evaluates the layer's true K, None if it is affine.
        """
        for i, gradient in zip(positions, gradients, strict=True):
            d = self._layer_metric[i]
            self.parameters[i].add_(gradient / d, alpha=-0.5 / epsilon)
            if i in self._layer_regularizers:
                self._layer_regularizers[i].prox_([self.parameters[i]], [d], epsilon)
        if check is None:
            return
        # Against the parameters of this moment: the layers before have their û already.
        base = [p.detach().clone() for p in self.parameters]
        given: list[Tensor | None] = list(self.gradients)
        for i, gradient in zip(positions, gradients, strict=True):
            base[i], given[i] = self._layer_base[i], gradient
        self._excess += self._safeguard.apply_([check], base, given, self._layer_metric, epsilon)

    def measure_layers(self) -> Candidate:
        """Compares what the parameters hold with the base point after all layers have been gone through."""
        return self._measure(self.values(), self._metrics(), self._excess)

    # ------------------------------------------------------------------ comparing and going back

    def measure(self) -> Candidate:
        """Compares what the parameters hold with the base point."""
        return self._measure(self.values(), self._metrics())

    def _measure(
        self,
        points: Sequence[Tensor],
        metric: Sequence[MetricWeight],
        excess: float = 0.0,
        means: Sequence[Tensor] | None = None,
    ) -> Candidate:
        slopes, taus, along = [], [], []
        means = self._means() if means is None else means
        for u, w, g, d, m in zip(points, self._base, self.slopes, metric, means, strict=True):
            step = u - w
            slopes.append(torch.dot(g, step))
            taus.append(squared_length(step, d))
            if m is not g:
                along.append(torch.dot(m, step))
        penalty = self._acting.penalty(self._weights(points))
        mean_slope = -_total(along) if along else None
        return Candidate(-_total(slopes), _total(taus), penalty, self.penalty, excess, mean_slope=mean_slope)

    def terms(self, layers: Mapping[str, Sequence[int]], epsilon: float) -> dict[str, LayerTerms]:
        """Hamiltonian and gain, layer by layer, without another sweep.

        Args:
            layers: The positions of each layer's tensors.
            epsilon: The ε of K.
        """
        base, means = self._of_parameters(self._base), self._of_parameters(self._means())
        metric = self._of_parameters(self._metrics())
        return {name: self._terms(positions, base, means, metric, epsilon) for name, positions in layers.items()}

    def _terms(
        self,
        positions: Sequence[int],
        base: Sequence[Tensor],
        means: Sequence[Tensor],
        metric: Sequence[MetricWeight],
        epsilon: float,
    ) -> LayerTerms:
        alignments, slopes, taus = [0.0], [0.0], [0.0]
        for i in positions:
            w, d = base[i].flatten().double(), metric[i]
            step = self.parameters[i].detach().flatten().double() - w
            taus.append(float(squared_length(step, d.double() if isinstance(d, Tensor) else d)))
            slopes.append(-float(torch.dot(means[i].flatten().double(), step)))
            if (gradient := self.gradients[i]) is not None:
                alignments.append(-float(torch.dot(gradient.flatten().double(), w)))
        own = [i for i in self._regularized if i in positions]
        before = after = 0.0
        if own:
            r = self._regularizer.restricted_to([self._regularized.index(i) for i in own])
            before = float(r.penalty([base[i] for i in own]))
            after = float(r.penalty([self.parameters[i].detach() for i in own]))
        gain = augmented_gain(math.fsum(slopes), after - before, epsilon, math.fsum(taus))
        return LayerTerms(affine_hamiltonian(math.fsum(alignments), before), float(gain))

    def restore_(self, to_start: bool = False) -> None:
        """Puts the base point back into the parameters, to the bit; or the w of the start, before any projection."""
        self.put_(self.start if to_start else self._base)

    def project_(self) -> None:
        """Moves the base point, and the parameters with it, to the nearest admissible point in the metric."""
        metric = self._metrics()
        self._base = [w.clone() for w in self.start]
        self._acting.project_(self._weights(self._base), self._weights(metric))
        self.restore_()
        self.penalty = self._acting.penalty(self._weights(self._base))

    # ------------------------------------------------------------------ vectors

    def _metrics(self) -> list[MetricWeight]:
        """D of every pack, made anew so that it takes no memory during the sweeps."""
        return [self._metric(pack, g) for pack, g in zip(self.packs, self.slopes, strict=True)]

    def _means(self) -> list[Tensor]:
        """−Ḡ of every pack, made anew like D."""
        if self._mean is None:
            return list(self.slopes)
        return [self._mean(pack, g) for pack, g in zip(self.packs, self.slopes, strict=True)]

    def values(self) -> list[Tensor]:
        """A copy of what the parameters hold, to be put back by :meth:`put_`."""
        return [pack.values() for pack in self.packs]

    def put_(self, points: Sequence[Tensor]) -> None:
        """Puts one vector per pack into the parameters."""
        for pack, point in zip(self.packs, points, strict=True):
            pack.put(point)

    def _weights(self, vectors: Sequence[MetricWeight]) -> list:
        """What R acts on, of vectors: one vector if R treats all tensors alike, or views of the tensors' shapes."""
        if not self._regularized:
            return []
        if self._on_vector is not None:
            vector = vectors[0]
            size = sum(self.packs[0].sizes[: len(self._regularized)])
            return [vector[:size] if isinstance(vector, Tensor) else vector]
        views = self._of_parameters(vectors)
        return [views[i] for i in self._regularized]

    def _of_parameters(self, vectors: Sequence[MetricWeight]) -> list:
        """Views in the parameters' shapes and order; a scalar is the same for all."""
        views: list = [None] * len(self.parameters)
        for pack, vector in zip(self.packs, vectors, strict=True):
            pieces = pack.pieces(vector) if isinstance(vector, Tensor) else [vector] * len(pack.positions)
            for position, piece in zip(pack.positions, pieces, strict=True):
                views[position] = piece
        return views


def _total(scalars: Sequence[Tensor]) -> Tensor:
    """Σ of scalars of one or several devices, in double precision where they are several."""
    if len(scalars) == 1:
        return scalars[0]
    return torch.stack([s.to(scalars[0].device, torch.float64) for s in scalars]).sum()


def _largest(scalars: Sequence[Tensor]) -> Tensor | float:
    if len(scalars) < 2:
        return scalars[0] if scalars else 0.0
    return torch.stack([s.to(scalars[0].device, torch.float64) for s in scalars]).max()
