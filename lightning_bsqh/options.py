"""All options of the method, checked once; BSQHStrategy and BSQHOptimizer share them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lightning_bsqh._validation import choice, integer, names, number, shown
from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.curvature import Curvature
from lightning_bsqh.method.device_refusals import check_options
from lightning_bsqh.method.metric import make_metric
from lightning_bsqh.method.trial_schedule import longest_interval
from lightning_bsqh.network.layers import LayerChoice, check_layers
from lightning_bsqh.regularizers import Regularizer
from lightning_bsqh.regularizers.by_name import check_option
from lightning_bsqh.sweeps.full_batch_options import FullBatch, make_full_batch


@dataclass(frozen=True, kw_only=True)
class BSQHOptions:
    """What a user may choose; see :class:`~lightning_bsqh.BSQHOptimizer` for the meaning of each.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range, or does not go together with another.
    """

    regularizer: Regularizer | Mapping[str, Regularizer] | None = None
    augmentation: Augmentation | None = None
    epsilon: float | None = None
    metric: str = "rms"
    averaging: float | None = None
    eta: float = 1e-4
    max_trials: int = 6
    trial_every: int | str = 1
    decide: str = "host"
    regularize: Sequence[str] | None = None
    total_steps: int | None = None
    layers: LayerChoice = "leaf"
    sweep: str = "jacobi"
    batch_mode: str = "mini"
    kappa: float = 1e-9
    max_iterations: int | None = None
    count_samples: Callable[[Any], int] | None = None
    reuse: bool = True
    on_stall: str = "warn"
    #: The options of full-batch mode, None in mini-batch mode.
    full_batch: FullBatch | None = field(init=False, repr=False, compare=False)

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> BSQHOptions:
        """The options among the arguments of a constructor that takes all of them, its ``locals()``."""
        return cls(**{f.name: arguments[f.name] for f in fields(cls) if f.init})

    def __post_init__(self) -> None:
        full_batch = make_full_batch(self.batch_mode, self.kappa, self.max_iterations, self.count_samples, self.reuse)
        object.__setattr__(self, "full_batch", full_batch)
        number("eta", self.eta, low=0.0)
        integer("max_trials", self.max_trials, low=1)
        if self.total_steps is not None:
            integer("total_steps", self.total_steps, low=1)
        choice("sweep", self.sweep, ("jacobi", "gauss-seidel"))
        choice("decide", self.decide, ("host", "device"))
        choice("on_stall", self.on_stall, ("warn", "raise"))
        check_layers(self.layers)
        if self.regularize is not None:
            names("regularize", self.regularize, '["conv*", "!fc3"]')
        if self.regularizer is not None:
            check_option(self.regularizer, self.regularize)
        rule = self.make_augmentation()
        self._check_sweep()
        self._check_averaging()
        if self.decide == "device":
            check_options(self, rule)

    def _check_sweep(self) -> None:
        if self.sweep == "gauss-seidel" and self.full_batch is not None:
            raise ValueError(
                "sweep='gauss-seidel' cannot be used with batch_mode='full', where a layer would be updated before"
                " the other micro-batches have reached it: use sweep='jacobi', or batch_mode='mini' with all data"
                " in one batch."
            )
        if longest_interval(self.trial_every) > 1 and self._tests_all and not isinstance(self.trial_every, str):
            raise ValueError(
                f"trial_every={self.trial_every!r} is for batch_mode='mini' with sweep='jacobi': full-batch mode"
                " promises a decrease in every iteration, and in a gauss-seidel sweep the trial makes the candidate."
            )

    def _check_averaging(self) -> None:
        if self.averaging is None:
            return
        number("averaging", self.averaging, low=0.0, high=1.0, open_high=True)
        if self.averaging and self._tests_all:
            raise ValueError(
                f"averaging={self.averaging!r} is for batch_mode='mini' with sweep='jacobi': in full-batch mode the"
                " gradient is that of all data, and in a gauss-seidel sweep that of layers which have moved already."
                " Leave it out."
            )

    @property
    def share_of_past(self) -> float:
        """The share of the past in Ḡ: the user's, or the metric's."""
        if self._tests_all:
            return 0.0
        return make_metric(self.metric).averaging if self.averaging is None else self.averaging

    @property
    def _tests_all(self) -> bool:
        return self.full_batch is not None or self.sweep == "gauss-seidel"

    @property
    def longest_interval(self) -> int:
        """The number of batches from one trial to the next, in calm."""
        return 1 if self._tests_all else longest_interval(self.trial_every)

    @property
    def length(self) -> int | None:
        """The length of the training in iterations, as far as the options tell."""
        return self.max_iterations if self.total_steps is None else self.total_steps

    @property
    def are_default(self) -> bool:
        """Whether the user has chosen nothing."""
        chosen = [(getattr(self, f.name), f.default) for f in fields(self) if f.init]
        return all(value is default or value == default for value, default in chosen)

    def for_found_layers(self) -> dict[str, Any]:
        """The options by name, but those that choose layers and weights: for an optimizer whose layers are chosen."""
        left_out = {"layers", "regularize"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in left_out}

    def make_augmentation(self) -> Augmentation:
        """The rule for ε from the two options that can name it, ready for the metric; a copy of the user's own.

        Raises:
            TypeError: If ``augmentation`` is no rule.
            ValueError: If both are given, or ``epsilon`` is out of its range.
        """
        rule = make_augmentation(self.augmentation, self.epsilon)
        metric = make_metric(self.metric)
        rule.prepare(metric.rule_defaults if self.full_batch is None else metric.full_batch_rule_defaults)
        return rule


def make_augmentation(augmentation: Augmentation | None, epsilon: float | None) -> Augmentation:
    """The rule for ε from the two options that can name it; a copy of the user's own.

    Args:
        augmentation: The rule; None takes the default.
        epsilon: The default rule's start; None leaves it to the rule.

    Raises:
        TypeError: If ``augmentation`` is no rule.
        ValueError: If both are given, or ``epsilon`` is out of its range.
    """
    if augmentation is None:
        return Curvature() if epsilon is None else Curvature(epsilon=epsilon)
    if epsilon is not None:
        raise ValueError(
            f"epsilon={shown(epsilon)} is short for the default rule's start: give it to the rule,"
            f" {type(augmentation).__name__}(epsilon={shown(epsilon)}), instead of beside augmentation."
        )
    if not isinstance(augmentation, Augmentation):
        raise TypeError(f"augmentation must be a rule such as Backtracking(), got {shown(augmentation)}.")
    return copy.deepcopy(augmentation)
