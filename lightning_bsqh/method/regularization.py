"""R over a whole training: on which tensors, at which share of its length (method §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_bsqh._validation import integer
from lightning_bsqh.method.demand import Demand
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.regularizers import L0, ByName, Cardinality, Regularizer
from lightning_bsqh.regularizers.by_name import bind


class Regularization:
    """Gives R as it holds in an iteration.

    Args:
        given: What the user chose: R, or several by name patterns; None for the default, which is ``Cardinality()``
            where the length is known and ``L0()`` where not.
        layers: The layers of the network; with patterns, ``regularized`` of each is set.
        regularize: The patterns of what R acts on.
        total_steps: Length of the training in iterations, None if unknown.
    """

    def __init__(
        self,
        given: Regularizer | Mapping[str, Regularizer] | None,
        layers: Sequence[Layer],
        regularize: Sequence[str] | None,
        total_steps: int | None,
    ) -> None:
        #: Whether R was left open.
        self.is_default = given is None
        self.total_steps = total_steps
        self.regularizer = bind(_default(total_steps is not None) if given is None else given, layers, regularize)
        self._layers = layers
        self._demand = Demand([n for layer in layers for n in layer.parameters if n in layer.regularized])

    def of(self, layer: Layer) -> str:
        """What R is for one layer's regularized weights, as a user would write it."""
        order = [n for other in self._layers for n in other.parameters if n in other.regularized]
        own = [order.index(n) for n in layer.parameters if n in layer.regularized]
        return repr(self.regularizer.restricted_to(own))

    def claims(self, name: str) -> bool:
        """Whether R acts on a weight of no known layer: regularizers by name have claimed theirs, others take it."""
        claimed = not isinstance(self.regularizer, ByName)
        if claimed:
            self._demand.add(name)
        return claimed

    def begin(self, names: Sequence[str], step: int) -> Regularizer:
        """R in iteration ``step``, in which it acts on these tensors; called once, before it."""
        self._demand.begin(names, step, self.total_steps)
        return self._demand.at(self.regularizer, names, step, self.total_steps)

    def in_full(self, names: Sequence[str]) -> Regularizer:
        """R on these tensors as at the end of the training."""
        return self._demand.in_full(self.regularizer, names)

    def learn_uses(self, uses: Mapping[str, int]) -> None:
        """Takes the multiply-adds of one weight of each tensor; raises ValueError if a tensor of R is missing."""
        order = self._demand.order
        unknown = [name for name in order if name not in uses]
        if unknown:
            raise ValueError(
                f"{self.regularizer!r} needs to know how often {', '.join(unknown[:3])} is used, which only layers that"
                " are Linear or convolutions tell: leave it out of regularize, or give with_costs([...]) yourself."
            )
        self.regularizer = self.regularizer.with_costs([uses[name] for name in order])

    def is_met_by(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these weights satisfy the constraint in full, as at the end of its ramp."""
        if self.regularizer.needs_costs:
            return False  # Nothing has been seen yet.
        return bool(self.in_full(list(weights)).admits([w.detach() for w in weights.values()]))

    def lengthen(self, step: int, total_steps: int) -> None:
        """Takes a length that becomes known, or changes, after ``step`` iterations."""
        before, self.total_steps = self.total_steps, integer("total_steps", total_steps, low=1)
        self._demand.lengthen(step, before, total_steps)
        self.expect_length(True)

    def expect_length(self, known: bool) -> None:
        """Chooses the default by whether the length is known or will be; an R given by the user stays."""
        if self.is_default:
            self.regularizer = _default(known)

    def check_ready(self) -> None:
        """Raises ValueError if R has a ramp but nobody knows how long the training is."""
        if self.regularizer.needs_total_steps and self.total_steps is None:
            raise ValueError(
                f"total_steps must be given: the ramp of {self.regularizer!r} is a share of the training, whose length"
                " is not known; pass total_steps (an integer), or a ramp of (0.0, 0.0)."
            )

    def marks(self) -> dict[str, Any]:
        """Who has come and gone so far, for :meth:`go_back_to`."""
        return self._demand.state_dict()

    def go_back_to(self, marks: Mapping[str, Any]) -> None:
        """Takes back an iteration that was not done."""
        self._demand.load_state_dict(marks)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"total_steps": self.total_steps, "demand": self.marks()}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Takes back what :meth:`state_dict` gave after ``step`` iterations; a length known here replaces the saved."""
        if "demand" not in state:
            return
        self.go_back_to(state["demand"])
        planned, length = state["total_steps"], self.total_steps
        self.total_steps = planned
        if length is not None or planned is not None:
            self.lengthen(step, length or planned)


def _default(known: bool) -> Regularizer:
    return Cardinality() if known else L0()
