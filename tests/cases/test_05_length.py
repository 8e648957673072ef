"""The ramp follows the length that the training really has."""

import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder

from tests.cases.helpers import Net, fit, loader, trainer


class Zeros(Callback):
    """Share of zeros after each step."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, module, *args):
        self.after[trainer.global_step] = trainer.optimizers[0].sparsity()


def check(zeros, steps):
    """Few zeros after a tenth of the training, all of them at its end."""
    assert zeros.after[steps // 10] < 0.5
    assert abs(zeros.after[steps] - 0.9) < 0.01


def test_learning_rate_finder():
    """The few trial steps of a LearningRateFinder are not the training's length."""
    module, zeros = Net(), Zeros()
    module.lr = 1e-3
    finder = LearningRateFinder(num_training_steps=20)
    made = fit(module, max_epochs=30, callbacks=[finder, zeros], enable_checkpointing=True)
    assert made.global_step == 180
    check(zeros, 180)


class Own(Net):
    """Has its data itself, in batches of its own size."""

    def __init__(self):
        super().__init__()
        self.batch_size = 8

    def train_dataloader(self):
        return loader(batch=self.batch_size)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_batch_size_finder():
    """Neither are those of a BatchSizeFinder, nor the number of batches before it."""
    zeros = Zeros()
    finder = BatchSizeFinder(mode="power", steps_per_trial=2, max_trials=1, init_val=8)
    made = trainer(max_epochs=25, callbacks=[finder, zeros], enable_checkpointing=True)
    made.fit(Own())
    check(zeros, made.global_step)


def test_more_epochs_from_a_hook():
    """max_epochs raised in a hook of the first epoch is the training's length."""

    class Longer(Net):
        def on_train_epoch_start(self):
            if self.current_epoch == 0:
                self.trainer.fit_loop.max_epochs = 30

    zeros = Zeros()
    made = fit(Longer(), data=loader(), max_epochs=3, callbacks=[zeros])
    assert made.global_step == 180
    check(zeros, 180)
