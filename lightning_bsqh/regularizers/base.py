"""What the optimizer asks of a regularizer R, and how to write one's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lightning_bsqh.foreach import clamp_
from lightning_bsqh.network.shards import Shards

#: One layer tensor's metric D: a tensor of its shape, or 1.0 for the euclidean metric.
MetricWeight = Tensor | float


class Regularizer(ABC):
    """A term ρR(u) of the objective, acting on all regularized weights at once.

    The optimizer hands over the tensors of all regularized weights in a fixed order, so that a
    regularizer may couple layers (as a global cardinality does). Objects hold settings only, no
    state: what changes during training is derived from the step in :meth:`at`.
    """

    def __add__(self, other: object) -> Regularizer:
        """The sum with an ``L2``, such as ``Cardinality(0.95) + L2(rho=1e-5)``; nothing else can be added.

        Raises:
            TypeError: If neither of the two is an ``L2``.
        """
        # Here, since what makes sums knows the regularizers.
        from lightning_bsqh.regularizers.sums import add

        return add(self, other)

    def at(self, step: int, total_steps: int | None) -> Regularizer:
        """The regularizer that holds in iteration ``step`` (from 0) of ``total_steps``.

        Args:
            step: Number of iterations done before this one.
            total_steps: Number of iterations planned, None if unknown.
        """
        return self

    @property
    def needs_total_steps(self) -> bool:
        """Whether :meth:`at` cannot do without ``total_steps``."""
        return False

    @property
    def depends_on_metric(self) -> bool:
        """Whether the value of R depends on the metric D, so that it has to be asked of :meth:`held_in`."""
        return False

    def held_in(self, metric: Sequence[MetricWeight]) -> Regularizer:
        """R as it holds as long as the metric is this one; R itself unless it depends on it.

        Args:
            metric: D for each regularized tensor, in the fixed order.
        """
        return self

    @property
    def needs_costs(self) -> bool:
        """Whether R cannot do without what :meth:`with_costs` tells it."""
        return False

    def with_costs(self, costs: Sequence[int]) -> Regularizer:
        """R with the number of uses of every tensor known, such as the places at which a convolution is evaluated.

        Args:
            costs: For each regularized tensor, in the fixed order, the multiply-adds of one of its weights for one
                sample, at least 1.

        Returns:
            A copy if R asks for them, else R itself.
        """
        return self

    @property
    def couples_tensors(self) -> bool:
        """Whether R couples tensors, so that the maximizer of one depends on the others."""
        return False

    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        """R for the concatenation of all tensors instead of the tensors; None if R has to see them apart.

        On one vector an iteration takes a few operations, however many tensors there are.

        Args:
            sizes: Number of elements of each tensor, in their order.
        """
        return None

    def on_shards(self, shards: Shards) -> Regularizer:
        """R for tensors of which every process holds some rows only: :meth:`prox_` and the others get these.

        What it gives answers for its own rows: values of R are added up over the processes, and a point is admissible
        if every process says so. What couples rows asks the other processes, by way of ``shards``.

        Args:
            shards: What is known of the regularized tensors, in the fixed order.

        Raises:
            ValueError: If R cannot be used so; as this default does, which knows nothing of R.
        """
        raise ValueError(
            f"regularizer={self!r} cannot be used with shard='fsdp', where no process holds a weight tensor whole: use"
            " groups='output' and multiple=1 where these are others, give a regularizer of your own a method on_shards,"
            " or train without shard."
        )

    def leaves_enough(self, points: Sequence[Tensor]) -> Tensor | bool:
        """Whether no tensor has lost more than it may; only what :meth:`on_vector` gave may say no.

        An iteration that hears no uses what :meth:`on_vector_with_minimum` gives, or R on the tensors apart.

        Args:
            points: What :meth:`prox_` has made: one vector.
        """
        return True

    def on_vector_with_minimum(self, sizes: Sequence[int]) -> Regularizer | None:
        """As :meth:`on_vector`, but such that nobody has to ask :meth:`leaves_enough`."""
        never_says_no = type(self).leaves_enough is Regularizer.leaves_enough
        return self.on_vector(sizes) if never_says_no else None

    @property
    def acts_on_device(self) -> bool:
        """Whether :meth:`prox_` takes ε as a tensor without dimensions, too, and the host need not look at a value.

        It has to for ``decide="device"``. On a CPU, where looking costs nothing, it may.
        """
        return False

    @property
    def competes(self) -> bool:
        """Whether at any time of the training weights of one tensor stand against those of others."""
        return self.couples_tensors

    def confine_(self, weights: Sequence[Tensor]) -> None:
        """Moves single weights into the bounds that hold for each by itself, in place; nothing if there are none.

        Asked where û has been moved back toward a w that violates a constraint (method §3).
        """
        return

    def restricted_to(self, positions: Sequence[int]) -> Regularizer:
        """R as it acts on a few of the tensors, given by their positions in the fixed order; only the certificate asks.

        An R that treats all tensors alike, whichever they are, is its own restriction, as this default has it.
        """
        return self

    @abstractmethod
    def penalty(self, weights: Sequence[Tensor]) -> Tensor | float:
        """The value ρR(u), in the units of the loss; 0 for a constraint that u satisfies.

        Args:
            weights: The regularized tensors, any shapes.

        Returns:
            A number; or, so that the host need not wait for an accelerator, a tensor without dimensions on the weights'
            device, in double precision where it has that.
        """

    @abstractmethod
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        """Replaces z by argmax over u of −ρR(u) − ε‖u − z‖²_D, in place (method §3).

        Args:
            points: The points z = w + G/(2εD), one tensor per regularized weight tensor; overwritten.
            metric: D for each of them, the same shape or a scalar.
            epsilon: The augmentation parameter ε > 0.
        """

    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        """Whether ``weights`` satisfy the constraint (always true for a penalty).

        Returns:
            A bool; or, so that the host need not wait for an accelerator, a boolean tensor without dimensions.
        """
        return True

    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        """Moves ``weights`` to the nearest admissible point in the metric D, in place (nothing for a penalty)."""
        return

    def check_separable(self) -> None:
        """Raises ValueError unless :meth:`separate` can be used."""
        if self.couples_tensors and type(self).separate is Regularizer.separate:
            raise ValueError(
                f"regularizer={self!r} couples the layers, so that one cannot be updated after the other: use"
                " sweep='jacobi', or give it a method separate."
            )

    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        """R for each tensor by itself, in a sweep that updates one after the other (method §5, gauss-seidel).

        What couples tensors overrides this, and shares itself out among them as it is in ``weights``, the
        maximizer over all of them together.
        """
        return [self] * len(weights)

    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Which elements of admissible weights may not move on their own, or the constraint is violated.

        Asked where û is moved back toward w (method §3): these elements stay.

        Returns:
            A boolean mask of its shape for each tensor, or None where all may move.
        """
        return [None] * len(weights)

    def elementwise(self, weight: Tensor) -> Tensor | None:
        """ρR of every single element, the shape of ``weight``; None where R is no sum over elements.

        Only the certificate asks for it, to tell which single weights satisfy the maximum condition.
        """
        return None

    def hamiltonian_maximizer(self, ascents: Sequence[Tensor]) -> list[Tensor | None]:
        """Argmax over the admissible u of ⟨G, u⟩ − ρR(u), with no ε, for every tensor.

        Only the certificate asks for it. None for a tensor on which that is not bounded or not known.

        Args:
            ascents: G, one tensor per regularized weight tensor.
        """
        return [None for _ in ascents]

    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        """Like :meth:`hamiltonian_maximizer` with every weight in [low, high], both finite."""
        return [None for _ in ascents]

    def check_box(self, low: float, high: float) -> None:
        """Raises ValueError unless :meth:`prox_in_box_` is exact for the box [low, high]; so does this default.

        A regularizer that can be combined with :class:`~lightning_bsqh.Box` overrides this method,
        :meth:`prox_in_box_` and, if it is a constraint itself, :meth:`project_in_box_`.

        Args:
            low: Lower end, −∞ if there is none.
            high: Upper end, above ``low``; ∞ if there is none.
        """
        raise ValueError(f"Box cannot be combined with {self!r}: its maximizer in a box is not known.")

    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        """Like :meth:`prox_` with every weight in [low, high]; called only if :meth:`check_box` accepts the box."""
        raise NotImplementedError(f"{type(self).__name__} accepts a box in check_box but has no prox_in_box_.")

    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        """Like :meth:`project_` with every weight in [low, high]; for a penalty that is to clip."""
        clamp_(weights, low, high)
