"""What a module does beside the method, noticed and said once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lightning_bsqh.method.stall import nothing_moved, summary
from lightning_bsqh.namespace import pl, rank_zero_info, rank_zero_warn
from lightning_bsqh.network.tree import versions
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.configured import parameters_of
from lightning_bsqh.trainer_access import callbacks_of

#: Names that a message holds at most.
_NAMED = 8


class Gradients:
    """Notices hooks that change the gradients between the adjoint sweep and the step.

    Args:
        optimizer: Whose parameters are looked at.
    """

    def __init__(self, optimizer: BSQHOptimizer) -> None:
        self._optimizer = optimizer
        self._before: list[tuple[int, int]] | None = None
        self._was_said = False

    def after_backward(self) -> None:
        """Called before any hook can have seen the gradients."""
        if not self._was_said:
            self._before = self._state()

    def after_step(self) -> None:
        """Called when the step is done."""
        if self._before is None:
            return
        if self._state() != self._before:
            self._was_said = True
            rank_zero_warn(
                "A hook has changed the gradients between backward and the step (clip_grad_norm_, noise?). BSQHStrategy"
                " takes them as they are, although they are no longer those of the loss: ε already bounds the step."
                " Remove it."
            )
        self._before = None

    def _state(self) -> list[tuple[int, int]]:
        gradients = [p.grad for p in parameters_of(self._optimizer)]
        return [(id(g), versions(g)[0]) if g is not None else (0, 0) for g in gradients]


class Rates:
    """Notices who sets a learning rate, in a warm-up for instance.

    Args:
        optimizer: Whose groups are looked at.
    """

    def __init__(self, optimizer: BSQHOptimizer) -> None:
        self._optimizer = optimizer
        self._known = self._values()
        self._was_said = False

    def before_step(self) -> None:
        """Called when the module's optimizer_step may have set something."""
        if self._was_said:
            return
        now = self._values()
        changed = sorted({key for place, value in self._known.items() if now.get(place) != value for key in place[1:]})
        if changed:
            self._was_said = True
            rank_zero_warn(
                f"Something has set {' and '.join(changed)} in the optimizer's param_groups (a warm-up in"
                " optimizer_step, a scheduler or a callback?), which BSQHStrategy ignores: 1/(2ε) takes the place of"
                " the learning rate and adapts itself, and R that of weight decay."
            )

    def after_step(self) -> None:
        """Called when the optimizer has written its own."""
        if not self._was_said:
            self._known = self._values()

    def _values(self) -> dict[tuple[int, str], object]:
        groups = self._optimizer.param_groups
        return {(i, key): group.get(key) for i, group in enumerate(groups) for key in ("lr", "weight_decay")}


class Unused:
    """Notices parameters that the loss never depends on.

    Args:
        optimizer: Whose parameters are looked at.
    """

    def __init__(self, optimizer: BSQHOptimizer) -> None:
        self._optimizer = optimizer
        self._waiting: dict[str, Tensor] | None = None
        self._steps = 0
        self._was_said = False

    def after_step(self) -> None:
        """Called while the gradients of a step are still there."""
        if self._was_said:
            return
        if self._waiting is None:
            self._waiting = {n: p for layer in self._optimizer.layers for n, p in layer.trained.items()}
        self._steps += 1
        self._waiting = {name: p for name, p in self._waiting.items() if p.requires_grad and p.grad is None}

    def say(self) -> None:
        """Called when it is time: once all kinds of batches have been seen."""
        if self._was_said or not self._steps:
            return
        self._was_said = True
        if self._waiting:
            rank_zero_warn(
                f"The loss has not depended on {_listed(self._waiting)} in {self._steps} step(s): without a gradient,"
                " nothing but R acts there. Freeze what is not to be trained, with requires_grad_(False)."
            )
        self._waiting = {}


class Notices:
    """All three, for one training.

    Args:
        trainer: The Trainer.
        module: The module.
        optimizer: What trains it.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: BSQHOptimizer) -> None:
        watched = _changes_gradients(module, callbacks_of(trainer))
        self._gradients = Gradients(optimizer) if watched else None
        self._rates = Rates(optimizer)
        self._unused = Unused(optimizer)

    def at_start(self) -> None:
        """Called when the training begins, with what a checkpoint has brought."""
        self._rates.after_step()

    def before_step(self) -> None:
        """Called when the optimizer is about to step."""
        self._rates.before_step()

    def after_backward(self) -> None:
        """Called before any hook can have seen the gradients."""
        if self._gradients is not None:
            self._gradients.after_backward()

    def after_step(self, is_last_batch: bool) -> None:
        """Called when a step is done, while its gradients are still there."""
        self._rates.after_step()
        if self._gradients is not None:
            self._gradients.after_step()
        self._unused.after_step()
        if is_last_batch:
            self._unused.say()

    def at_end(self) -> None:
        """Called when the training ends."""
        self._unused.say()


def say_how_it_ended(optimizer: BSQHOptimizer, is_within_pass: bool) -> None:
    """Warns if a training has ended before its demand was met, or within a pass over the data."""
    if is_within_pass:
        rank_zero_warn(
            "The training ended within a pass over the data, which batch_mode='full' does not use: give max_epochs"
            " to the Trainer or max_iterations to BSQHStrategy instead of max_steps."
        )
    rank_zero_info(summary(optimizer.iterations, optimizer.accepted, optimizer.skipped))
    if (message := nothing_moved(optimizer.iterations, optimizer.accepted, optimizer.last_step)) is not None:
        rank_zero_warn(message)
    if optimizer.meets_constraint():
        return
    report = optimizer.last_step
    reason = "It was stopped within the ramp."
    if report is not None and report.tightened and not report.accepted:
        reason = "The last trials were rejected: with so many zeros the loss is not finite, or rises too far."
    rank_zero_warn(
        f"The training ended before {optimizer.regularizer!r} was met:"
        f" {100 * optimizer.sparsity():.2f} % of the weights are zero. {reason}"
    )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def _changes_gradients(module: pl.LightningModule, callbacks: Iterable[pl.Callback]) -> bool:
    """Whether there is a hook that could change gradients, so that it is worth looking."""
    hooks = ("on_after_backward", "on_before_optimizer_step")
    by_module = any(
        getattr(type(module), name) is not getattr(pl.LightningModule, name) or name in vars(module)
        for name in (*hooks, "configure_gradient_clipping")
    )
    return by_module or any(
        getattr(type(c), name) is not getattr(pl.Callback, name) for c in callbacks for name in hooks
    )
