"""One iteration from the gradients to the new iterate: it is done whole, or leaves everything as it was (method §2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.averaging import Averaging
from lightning_bsqh.method.before import Before
from lightning_bsqh.method.bent_layers import BentLayers
from lightning_bsqh.method.candidate import Candidate, LayerTerms
from lightning_bsqh.method.gauss_seidel import GaussSeidel
from lightning_bsqh.method.iteration import Iteration, PackMean
from lightning_bsqh.method.metric import Metric, Unreached
from lightning_bsqh.method.reduction import ProcessError, Reduction
from lightning_bsqh.method.report import LayerReport
from lightning_bsqh.method.search import Found, NoStep, NotFinite, Search, SearchOptions
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.packing import Pack, check_dtypes, make_packs
from lightning_bsqh.network.uninterrupted import uninterrupted, within_all
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.sweeps.base import AdjointPass

#: Iterations in which R keeps every tensor's minimum from the start, after one in which that took more work.
_MINIMUM = 100


class Stepper:
    """Turns the gradients of a forward and adjoint sweep into the next iterate.

    Args:
        layers: The layers of the network.
        metric: D.
        sweep: ``"jacobi"`` or ``"gauss-seidel"``.
        reduction: Brings numbers to the host.
        averaging: Ḡ; None for G itself.

    Raises:
        ValueError: If a gauss-seidel sweep is asked for and no layer's module is known.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        metric: Metric,
        sweep: str,
        reduction: Reduction,
        averaging: Averaging | None = None,
    ) -> None:
        self._layers = layers
        self._metric = metric
        self._averaging = Averaging(0.0) if averaging is None else averaging
        self._reduction = reduction
        bent = [layer for layer in layers if layer.is_safeguarded]
        recorded = layers if sweep == "gauss-seidel" else bent
        devices = [p.device for layer in layers for p in layer.parameters.values()]
        #: Records states and adjoints during the forward sweep; None if nobody needs them.
        self.boundaries = (
            # Where a layer is affine, gauss-seidel needs no input but that of the trial.
            Boundaries(recorded, devices, _needs_inputs) if recorded else None
        )
        self._gauss_seidel: GaussSeidel | None = None
        if sweep == "gauss-seidel":
            if self.boundaries is None or not any(layer.modules for layer in layers):
                raise ValueError("sweep='gauss-seidel' needs the network: give the module itself, not its parameters.")
            self._gauss_seidel = GaussSeidel(self.boundaries)
        self._bent = BentLayers(bent, self.boundaries, sweep == "gauss-seidel") if self.boundaries else None
        # For how many more iterations R keeps every tensor's minimum from the start.
        self._minimum = 0
        self._before = Before()
        self._can_go_back = False
        self._packs: list[Pack] = []
        self._packed: tuple[list[str], list[int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packs": [], "_packed": None}

    def share(self, reduction: Reduction) -> None:
        """From now on takes all decisions together with other processes, on the samples of all of them."""
        self._reduction = reduction
        if self._gauss_seidel is not None:
            self._gauss_seidel.reduction = reduction

    @torch.no_grad()
    def step(
        self,
        adjoint: AdjointPass,
        trained: Trained,
        regularizer: Regularizer,
        augmentation: Augmentation,
        options: SearchOptions,
        record_layers: bool = False,
        held: ExitStack | None = None,
    ) -> tuple[Found, dict[str, LayerReport] | None]:
        """One iteration; the parameters hold w before and the new iterate after it.

        An exception at any point, from the user's code in a trial too, leaves parameters, states and rule as they were.

        Args:
            adjoint: The forward and adjoint sweep at w.
            trained: What moves.
            regularizer: R as it holds in this iteration.
            augmentation: The rule for ε.
            options: What else the search needs.
            record_layers: Whether to report on every layer.
            held: From where the iteration cannot be taken back any more until this is closed, interrupts wait.

        Returns:
            How the search ended, and what it did to each layer if that was asked.

        Raises:
            NoStep: If loss or gradient are not finite, or the step before has gone astray; nothing has changed then.
        """
        iteration = self._make_iteration(trained, regularizer, augmentation.looks_at_weights)
        self._can_go_back = self._before.is_known(self._packs, trained.states)
        if not self._can_go_back:
            options = replace(options, loss_limit=math.inf)
        rule = augmentation.state_dict()
        try:
            found, layers = self._search(adjoint, trained, iteration, augmentation, options, record_layers)
            if held is not None:
                held.enter_context(uninterrupted())
        except BaseException as error:
            with uninterrupted():
                iteration.restore_(to_start=True)
                if self._can_go_back:
                    self._before.reset()
                augmentation.load_state_dict(rule)
            # In some rows of the gradient alone nobody can see whether all others see the same.
            may_be_of_weights = _may_be_of_weights(error) and self._reduction.has_all_rows
            if may_be_of_weights and (loss := self._not_finite(adjoint, iteration)) is not None:
                # With weights that are not finite a training_step may raise whatever it likes.
                self._reduction.miss()
                raise loss from None
            raise
        self._minimum = _MINIMUM if found.kept_minimum else max(self._minimum - 1, 0)
        for pack, gradient in zip(self._packs, iteration.slopes, strict=True):
            reached, states = [found.reached.get(i, True) for i in pack.positions], trained.states_of(pack)
            self._metric.commit(pack, gradient, states, reached)
            self._averaging.commit(pack, gradient, states, found.accepted)
        self._before.forget(trained.states)
        if not found.is_tested:
            self._before.keep(self._packs, iteration.start, trained.states)
        return found, layers

    def take_back(self, trained: Trained) -> bool:
        """Takes back the step before, if it was not tested, after an iteration that has raised :class:`NoStep`.

        Returns:
            Whether there was one.
        """
        if self._can_go_back:
            with torch.no_grad():
                self._before.put_back(self._packs, trained.states)
            self._averaging.forget(trained.states)
        return self._can_go_back

    def _search(
        self,
        adjoint: AdjointPass,
        trained: Trained,
        iteration: Iteration,
        augmentation: Augmentation,
        options: SearchOptions,
        record_layers: bool,
    ) -> tuple[Found, dict[str, LayerReport] | None]:
        places = trained.places(self._layers) if record_layers else {}
        first: dict[str, LayerTerms] = {}

        def on_first(epsilon: float) -> None:
            first.update(self._terms(iteration, places, epsilon))

        propose = self._proposal(adjoint, trained, iteration)
        assert adjoint.loss is not None
        maximise = None if self._gauss_seidel else iteration.maximise_
        on_first_candidate = on_first if places else None
        search = Search(
            iteration, maximise, propose, adjoint.trial, augmentation, options, self._reduction, on_first_candidate
        )
        found = search.run(adjoint.loss, adjoint.resolution)
        if not places:
            return found, None
        last = first if found.trials <= 1 else self._terms(iteration, places, found.epsilon)
        return found, {n: LayerReport(first[n].hamiltonian, first[n].gain, last[n].gain) for n in places}

    def _terms(
        self, iteration: Iteration, places: Mapping[str, Sequence[int]], epsilon: float
    ) -> dict[str, LayerTerms]:
        """What every layer's part is, over all rows."""
        terms = iteration.terms(places, epsilon)
        if self._reduction.has_all_rows:
            return terms
        totals = iter(self._reduction.totals([v for t in terms.values() for v in (t.hamiltonian, t.gain)]))
        return {name: LayerTerms(next(totals), next(totals)) for name in terms}

    def _proposal(
        self, adjoint: AdjointPass, trained: Trained, iteration: Iteration
    ) -> Callable[[float], tuple[Candidate, Tensor | float]]:
        gauss_seidel = self._gauss_seidel

        def jacobi(epsilon: float) -> tuple[Candidate, Tensor | float]:
            candidate = iteration.maximise_(epsilon)
            return candidate, adjoint.trial()

        def one_after_the_other(epsilon: float) -> tuple[Candidate, Tensor | float]:
            assert gauss_seidel is not None
            with within_all(gauss_seidel.updating(iteration, epsilon, trained.located(self._layers))):
                loss = adjoint.trial()
            return iteration.measure_layers(), loss

        return jacobi if gauss_seidel is None else one_after_the_other

    def _make_iteration(self, trained: Trained, regularizer: Regularizer, looks_at_weights: bool) -> Iteration:
        regularized = trained.regularized_positions
        packs = self._packs_of(trained, regularized)
        gradients = [dense(p.grad) for p in trained.parameters.values()]
        positions = self._metric.unreached(trained.states)
        unreached = (
            self._look_at_unreached(positions, gradients, regularizer, regularized) if positions else Unreached()
        )

        def metric(pack: Pack, gradient: Tensor) -> MetricWeight:
            weight: MetricWeight = self._metric.weight(pack, gradient, trained.states_of(pack), unreached)
            return weight

        checks = self._bent.checks(trained, self._reduction) if self._bent is not None else []
        return Iteration(
            list(trained.parameters.values()),
            gradients,
            metric,
            regularizer,
            regularized,
            checks,
            packs,
            {i: unreached.reached.get(i) for i in positions},
            keeps_minimum=self._minimum > 0,
            looks_at_weights=looks_at_weights,
            mean=self._mean_of(trained),
        )

    def _mean_of(self, trained: Trained) -> PackMean | None:
        """What gives −Ḡ; None if that is −G."""
        if not self._averaging.share:
            return None
        return lambda pack, gradient: self._averaging.direction(pack, gradient, trained.states_of(pack))

    def _look_at_unreached(
        self,
        positions: Sequence[int],
        gradients: Sequence[Tensor | None],
        regularizer: Regularizer,
        regularized: Sequence[int],
    ) -> Unreached:
        known = self._reduction.reached([gradients[i] for i in positions])
        reached = {} if known is None else dict(zip(positions, known, strict=True))
        return Unreached(contested(regularizer, regularized), reached)

    def _packs_of(self, trained: Trained, regularized: list[int]) -> list[Pack]:
        key = (list(trained.parameters), regularized)
        if self._packed != key or not all(pack.is_current() for pack in self._packs):
            check_dtypes(trained.parameters)
            self._metric.repack()
            self._averaging.repack()
            self._packs = make_packs(list(trained.parameters.values()), set(regularized))
            self._packed = key
        return self._packs

    def forget(self) -> None:
        """Lets go of what is kept between iterations for speed alone."""
        self._metric.repack()
        self._averaging.repack()
        self._before.reset()
        self._packs, self._packed = [], None

    def _not_finite(self, adjoint: AdjointPass, iteration: Iteration) -> NotFinite | None:
        """What was wrong with the batch, if anything was, after a trial has failed."""
        loss = math.nan if adjoint.loss is None else float(adjoint.loss)
        finite = all(bool(torch.isfinite(g).all()) for g in iteration.gradients if g is not None)
        return None if finite and math.isfinite(loss) else NotFinite(loss)


def _needs_inputs(layer: Layer) -> bool:
    return layer.is_safeguarded


def _may_be_of_weights(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (NoStep, ProcessError))


def contested(regularizer: Regularizer, regularized: Sequence[int]) -> set[int]:
    """The positions of the tensors whose weights stand against those of others, as for the places of Cardinality."""
    return {i for place, i in enumerate(regularized) if regularizer.restricted_to([place]).competes}


def dense(gradient: Tensor | None) -> Tensor | None:
    """A gradient without a sparse layout."""
    return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient
