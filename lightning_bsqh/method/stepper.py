"""One iteration from the gradients to the new iterate: it is done whole, or leaves everything as it was (method §2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.before import Before
from lightning_bsqh.method.candidate import Candidate, LayerTerms
from lightning_bsqh.method.gauss_seidel import GaussSeidel
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.method.metric import Metric
from lightning_bsqh.method.reduction import ProcessError, Reduction
from lightning_bsqh.method.report import LayerReport
from lightning_bsqh.method.safeguard import TrueHamiltonian
from lightning_bsqh.method.search import Found, NoStep, NotFinite, Search, SearchOptions
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.packing import Pack, check_dtypes, make_packs
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.network.uninterrupted import uninterrupted, within_all
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.sweeps.base import AdjointPass

#: On the inputs of so many iterations a layer has to look affine.
_TRIED_OUT = 2

#: Iterations in which R sees the tensors apart after one in which it had to.
_APART = 100


@dataclass(frozen=True)
class Trained:
    """The tensors that an iteration moves.

    Attributes:
        parameters: By their full names.
        states: What is remembered of each.
        regularized: Names of those that R acts on.
        shards: What is known of the latter, if the parameters are some rows of tensors only.
    """

    parameters: Mapping[str, Tensor]
    states: Sequence[dict[str, Any]]
    regularized: Collection[str]
    shards: Shards | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of the first of them, which tells how large a gradient may be."""
        return next((p.dtype for p in self.parameters.values()), torch.get_default_dtype())

    @property
    def regularized_names(self) -> list[str]:
        """Names of the regularised ones, in their order."""
        return [name for name in self.parameters if name in self.regularized]

    @property
    def regularized_positions(self) -> list[int]:
        """Where the regularised ones are among all."""
        return [i for i, name in enumerate(self.parameters) if name in self.regularized]


class Stepper:
    """Turns the gradients of a forward and adjoint sweep into the next iterate.

    Args:
        layers: The layers of the network.
        metric: D.
        sweep: ``"jacobi"`` or ``"gauss-seidel"``.
        reduction: Brings numbers to the host.

    Raises:
        ValueError: If a gauss-seidel sweep is asked for and no layer's module is known.
    """

    def __init__(self, layers: Sequence[Layer], metric: Metric, sweep: str, reduction: Reduction) -> None:
        self._layers = layers
        self._metric = metric
        self._reduction = reduction
        self._checked = [layer for layer in layers if layer.can_be_run and not layer.is_affine]
        recorded = layers if sweep == "gauss-seidel" else self._checked
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
        # How often a layer has been tried out and looked affine; the full number once it has not.
        self._seen: dict[str, int] = {}
        # For how many more iterations R sees the tensors apart from the start.
        self._apart = 0
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
        iteration = self._make_iteration(adjoint, trained, regularizer)
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
        self._apart = _APART if found.taken_apart else max(self._apart - 1, 0)
        for pack, gradient in zip(self._packs, iteration.slopes, strict=True):
            reached = [found.reached.get(i, True) for i in pack.positions]
            self._metric.commit(pack, gradient, [trained.states[i] for i in pack.positions], reached)
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
        places = self._places(trained) if record_layers else {}
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
            with within_all(gauss_seidel.updating(iteration, epsilon, self._located(self._layers, trained))):
                loss = adjoint.trial()
            return iteration.measure_layers(), loss

        return jacobi if gauss_seidel is None else one_after_the_other

    def _make_iteration(self, adjoint: AdjointPass, trained: Trained, regularizer: Regularizer) -> Iteration:
        regularized = trained.regularized_positions
        packs = self._packs_of(trained, regularized)
        unreached = self._metric.unreached(trained.states)
        low = contested(regularizer, regularized) if unreached else set()
        gradients = [_dense(p.grad) for p in trained.parameters.values()]
        known = self._reduction.reached([gradients[i] for i in unreached]) if unreached else None
        reached = dict(zip(unreached, known, strict=True)) if known is not None else {}

        def metric(pack: Pack, gradient: Tensor) -> MetricWeight:
            states = [trained.states[i] for i in pack.positions]
            weight: MetricWeight = self._metric.weight(pack, gradient, states, low, reached)
            return weight

        checks = self._checks(trained)
        parameters = list(trained.parameters.values())
        apart = self._apart > 0
        parts = (regularizer, regularized, checks, packs, unreached, apart, reached)
        return Iteration(parameters, gradients, metric, *parts)

    def _packs_of(self, trained: Trained, regularized: list[int]) -> list[Pack]:
        key = (list(trained.parameters), regularized)
        if self._packed != key or not all(pack.is_current() for pack in self._packs):
            check_dtypes(trained.parameters)
            self._metric.repack()
            self._packs = make_packs(list(trained.parameters.values()), set(regularized))
            self._packed = key
        return self._packs

    def forget(self) -> None:
        """Lets go of what is kept between iterations for speed alone."""
        self._metric.repack()
        self._before.reset()
        self._packs, self._packed = [], None

    def _checks(self, trained: Trained) -> list[TrueHamiltonian]:
        """The layers whose true K has to be looked at at once, as far as they can be run alone in this iteration."""
        checks: list[TrueHamiltonian] = []
        if self.boundaries is None:
            return checks
        self._try_out(self.boundaries)
        located = self._located(self._checked, trained)
        if not located:
            return checks
        counts = self._reduction.most([float(len(self.boundaries.calls(layer))) for layer, _ in located])
        for (layer, positions), calls in zip(located, counts, strict=True):
            if calls > 1 or (calls == 1 and self._gauss_seidel is None):
                checks.append(TrueHamiltonian(positions, partial(self._alignment, self.boundaries, layer)))
        return checks

    def _alignment(self, boundaries: Boundaries, layer: Layer) -> float:
        return self._reduction.mean(boundaries.alignment(layer))

    def _try_out(self, boundaries: Boundaries) -> None:
        """Looks whether layers of no known kind are affine after all, on the inputs of two iterations."""
        open_to_doubt = [layer for layer in self._checked if self._seen.get(layer.name, 0) < _TRIED_OUT]
        if not open_to_doubt:
            return
        straight = [_looks_affine(layer, boundaries) for layer in open_to_doubt]
        # Bent in one process is bent in all.
        tried = self._reduction.most([float(s is not None) for s in straight])
        bent = self._reduction.most([float(s is False) for s in straight])
        for layer, is_tried, is_bent in zip(open_to_doubt, tried, bent, strict=True):
            if not is_tried:
                continue
            if is_bent:
                self._seen[layer.name] = _TRIED_OUT
                continue
            self._seen[layer.name] = self._seen.get(layer.name, 0) + 1
            if self._seen[layer.name] == _TRIED_OUT:
                layer.is_seen_affine = True
                self._checked.remove(layer)
                if self._gauss_seidel is None:
                    boundaries.forget(layer)

    def _located(self, layers: Sequence[Layer], trained: Trained) -> list[tuple[Layer, list[int]]]:
        """The layers with the positions of their tensors among all that move."""
        places = {name: i for i, name in enumerate(trained.parameters)}
        located = [(layer, [places[name] for name in layer.parameters if name in places]) for layer in layers]
        return [(layer, positions) for layer, positions in located if positions]

    def _places(self, trained: Trained) -> dict[str, list[int]]:
        """The positions by the layers' names; a parameter of no known layer has its own."""
        located = {layer.name: positions for layer, positions in self._located(self._layers, trained)}
        known = {i for positions in located.values() for i in positions}
        return located | {name: [i] for i, name in enumerate(trained.parameters) if i not in known}

    def _not_finite(self, adjoint: AdjointPass, iteration: Iteration) -> NotFinite | None:
        """What was wrong with the batch, if anything was, after a trial has failed."""
        loss = math.nan if adjoint.loss is None else float(adjoint.loss)
        finite = all(bool(torch.isfinite(g).all()) for g in iteration.gradients if g is not None)
        return None if finite and math.isfinite(loss) else NotFinite(loss)


def _needs_inputs(layer: Layer) -> bool:
    return not layer.is_affine


def _may_be_of_weights(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (NoStep, ProcessError))


def _looks_affine(layer: Layer, boundaries: Boundaries) -> bool | None:
    """Whether a layer looks affine on its present inputs; None if it cannot be told."""
    calls = boundaries.calls(layer)
    parameters = [p for p in layer.parameters.values() if p.requires_grad]
    if not calls or not parameters:
        return None
    return all(call.again().is_affine_in(parameters) for call in calls)


def contested(regularizer: Regularizer, regularized: Sequence[int]) -> set[int]:
    """The positions of the tensors whose weights stand against those of others, as for the places of Cardinality."""
    return {i for place, i in enumerate(regularized) if regularizer.restricted_to([place]).competes}


def _dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient
