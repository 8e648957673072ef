"""Several regularizers at once, each for the tensors that a name pattern claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import shown
from lightning_bsqh.foreach import both
from lightning_bsqh.network.layers import Layer, claim
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer

Value = TypeVar("Value")


class ByName(Regularizer):
    """Σ_k ρ_k R_k, where every R_k has tensors of its own (method §3).

    What a mapping from patterns to regularizers becomes once the names are known, see :func:`bind`. As no tensor
    belongs to two of them, the maximizer of K is that of each R_k on its own tensors.

    Args:
        regularizers: The R_k by their patterns.
        owners: For every tensor, in the order in which they will be handed over, the pattern that claims it.
    """

    def __init__(self, regularizers: Mapping[str, Regularizer], owners: Sequence[str]) -> None:
        self.regularizers = dict(regularizers)
        self.owners = tuple(owners)

    def __repr__(self) -> str:
        return repr(self.regularizers)

    @override
    def at(self, step: int, total_steps: int | None) -> Regularizer:
        return ByName({name: r.at(step, total_steps) for name, r in self.regularizers.items()}, self.owners)

    @property
    @override
    def needs_total_steps(self) -> bool:
        return any(r.needs_total_steps for r in self.regularizers.values())

    @property
    @override
    def depends_on_metric(self) -> bool:
        return any(r.depends_on_metric for r in self.regularizers.values())

    @override
    def held_in(self, metric: Sequence[MetricWeight]) -> Regularizer:
        return ByName({name: r.held_in(self._of(name, metric)) for name, r in self.regularizers.items()}, self.owners)

    @property
    @override
    def needs_costs(self) -> bool:
        return any(r.needs_costs for r in self.regularizers.values())

    @override
    def with_costs(self, costs: Sequence[int]) -> Regularizer:
        known = {name: r.with_costs(self._of(name, costs)) for name, r in self.regularizers.items()}
        return ByName(known, self.owners)

    @property
    @override
    def couples_tensors(self) -> bool:
        return any(r.couples_tensors and self.owners.count(name) > 1 for name, r in self.regularizers.items())

    @property
    @override
    def acts_on_device(self) -> bool:
        return all(r.acts_on_device for r in self.regularizers.values())

    @property
    @override
    def competes(self) -> bool:
        return any(r.competes and self.owners.count(name) > 1 for name, r in self.regularizers.items())

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        places = {name: [i for i, owner in enumerate(self.owners) if owner == name] for name in self.regularizers}
        parts = {name: r.on_shards(shards.restricted_to(places[name])) for name, r in self.regularizers.items()}
        return ByName(parts, self.owners)

    @override
    def confine_(self, weights: Sequence[Tensor]) -> None:
        for name, r in self.regularizers.items():
            r.confine_(self._of(name, weights))

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor | float:
        return sum((r.penalty(self._of(name, weights)) for name, r in self.regularizers.items()), 0.0)

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for name, r in self.regularizers.items():
            r.prox_(self._of(name, points), self._of(name, metric), epsilon)

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        admitted: Tensor | bool = True
        for name, r in self.regularizers.items():
            admitted = both(admitted, r.admits(self._of(name, weights)))
        return admitted

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        for name, r in self.regularizers.items():
            r.project_(self._of(name, weights), self._of(name, metric))

    @override
    def check_separable(self) -> None:
        for r in self.regularizers.values():
            r.check_separable()

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        return self._merged({name: r.separate(self._of(name, weights)) for name, r in self.regularizers.items()})

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return self._merged({name: r.pinned(self._of(name, weights)) for name, r in self.regularizers.items()})

    @override
    def hamiltonian_maximizer(self, ascents: Sequence[Tensor]) -> list[Tensor | None]:
        return self._merged({n: r.hamiltonian_maximizer(self._of(n, ascents)) for n, r in self.regularizers.items()})

    @override
    def restricted_to(self, positions: Sequence[int]) -> Regularizer:
        owners = [self.owners[i] for i in positions]
        if len(set(owners)) == 1:
            name = owners[0]
            own = [i for i, owner in enumerate(self.owners) if owner == name]
            return self.regularizers[name].restricted_to([own.index(i) for i in positions])
        return ByName({name: r for name, r in self.regularizers.items() if name in owners}, owners)

    def _of(self, name: str, values: Sequence[Value]) -> list[Value]:
        """Those of the values, one per tensor, that belong to one pattern's tensors."""
        return [value for owner, value in zip(self.owners, values, strict=True) if owner == name]

    def _merged(self, values: Mapping[str, Sequence[Value]]) -> list[Value]:
        """The reverse: one value per tensor, from those of each pattern's tensors."""
        left = {name: iter(own) for name, own in values.items()}
        return [next(left[owner]) for owner in self.owners]


def bind(
    regularizer: Regularizer | Mapping[str, Regularizer],
    layers: Sequence[Layer],
    regularize: Sequence[str] | None = None,
) -> Regularizer:
    """The one R that a training has: the regularizer itself, or what a mapping by patterns means for these layers.

    A pattern selects what ``regularize=[pattern]`` would. With a mapping, R acts on what the patterns claim and on
    nothing else; ``regularized`` of the layers is set accordingly.

    Args:
        regularizer: A regularizer; or regularizers by patterns; or what this function made of one before.
        layers: The layers that are trained.
        regularize: The option of the same name, refused beside a mapping.

    Raises:
        TypeError: If ``regularizer`` is neither, or holds something that is no regularizer.
        ValueError: If a mapping is empty or comes with ``regularize``, a pattern is no name or matches nothing, or two
            of them claim the same parameter.
    """
    check_option(regularizer, regularize)
    given = regularizer.regularizers if isinstance(regularizer, ByName) else regularizer
    if isinstance(given, Regularizer):
        return given
    owners = claim(layers, list(given))
    return ByName(given, [owners[n] for layer in layers for n in layer.parameters if n in layer.regularized])


def check_option(regularizer: object, regularize: Sequence[str] | None = None) -> None:
    """Checks what can be checked of the two options before there are layers.

    Raises:
        TypeError: If ``regularizer`` is neither a regularizer nor a mapping, or holds something that is none.
        ValueError: If a mapping is empty, has a key that is no name, or comes with ``regularize``.
    """
    if isinstance(regularizer, ByName):
        regularizer = regularizer.regularizers
    if isinstance(regularizer, Regularizer):
        return
    if not isinstance(regularizer, Mapping):
        raise TypeError(
            f"regularizer must be a Regularizer such as L0(rho=1e-5), or a dict of them by name patterns such as"
            f' {{"conv*": L0(rho=1e-5)}}, got {shown(regularizer)}.'
        )
    if not regularizer:
        raise ValueError("regularizer is an empty dict: name at least one pattern, or pass L0(rho=0.0) for none.")
    for pattern, value in regularizer.items():
        if not isinstance(pattern, str) or not pattern.strip("!"):
            raise ValueError(
                f'regularizer: a pattern must be a name such as "conv*" or "fc3.bias", got {shown(pattern)}.'
            )
        if not isinstance(value, Regularizer):
            raise TypeError(
                f"regularizer[{shown(pattern)}] must be a Regularizer such as L0(rho=1e-5), got {shown(value)}."
            )
    if regularize is not None:
        raise ValueError(
            f"regularize={shown(regularize)} cannot be used together with regularizers by name patterns, which say"
            " themselves what they act on: leave regularize out, and out of the patterns what is to stay free."
        )
