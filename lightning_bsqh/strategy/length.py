"""The length of the training, asked of the Trainer."""

from __future__ import annotations

from lightning_bsqh.namespace import MisconfigurationException, pl, rank_zero_info, rank_zero_warn
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.window import stepping_batches


class TrainingLength:
    """Keeps the optimizer's ``total_steps`` at what the Trainer plans, as long as the user has not told it.

    Asked again before every batch, which costs little: searches for a batch size or a learning rate train a few
    batches before the training, and ``max_epochs`` may be changed while it runs.

    Args:
        trainer: The Trainer.
        optimizer: Whose length it is.
    """

    def __init__(self, trainer: pl.Trainer, optimizer: BSQHOptimizer) -> None:
        self._trainer = trainer
        self._optimizer = optimizer
        self._is_asked = optimizer.total_steps is None
        # The length that a checkpoint was written with.
        self._before: int | None = None

    def begin(self) -> None:
        """Asks at the start of a training, and says it if there is no answer."""
        optimizer = self._optimizer
        if self._is_asked and not self.follow() and optimizer.has_default_regularizer:
            optimizer.expect_length(False)
            rank_zero_warn(
                "The length of the training is not known, so BSQHStrategy uses L0(rho=1e-5) and no schedule for ε"
                " instead of a ramp of the sparsity; give max_steps to the Trainer or total_steps to BSQHStrategy."
            )
        optimizer.check_ready()

    def follow(self) -> bool:
        """Asks again.

        Returns:
            Whether the length is known.
        """
        if not self._is_asked:
            return True
        # Also of use where it is not known: it refuses what cannot be.
        batches = self.batches_per_iteration()
        steps = stepping_batches(self._trainer)
        if not 0 < steps < float("inf"):
            return False
        optimizer = self._optimizer
        # Of a training that goes on, a new optimizer sees only what is left; one that comes with a checkpoint may be
        # a step ahead of what the Trainer has counted.
        done = max(self._trainer.global_step // batches - optimizer.iterations, 0)
        length = max(int(steps) // batches - done, 1)
        before = optimizer.total_steps
        if length != before:
            optimizer.set_total_steps(length)
            if before is not None and optimizer.iterations and optimizer.regularizer.needs_total_steps:
                rank_zero_info(
                    f"The training is now {length} iterations long instead of {before}: after {optimizer.iterations}"
                    " the ramp goes on from what it has reached."
                )
        return True

    def batches_per_iteration(self) -> int:
        """1, or the number of batches of a pass over the data."""
        if self._optimizer.full_batch is None:
            return 1
        trainer = self._trainer
        batches = trainer.num_training_batches
        if batches == float("inf"):
            raise MisconfigurationException(
                "batch_mode='full' needs training data of known length, but the data loader has none"
                f" ({type(trainer.train_dataloader).__name__}): an iteration is one pass over all batches. Give the"
                " data set a __len__, or the Trainer limit_train_batches=N, or use batch_mode='mini'."
            )
        return max(int(batches), 1)
