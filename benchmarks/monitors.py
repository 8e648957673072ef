"""What BSQHMonitor costs: the share of a training's time that its hooks and its readings take.

    python benchmarks/monitors.py [--every 50] [--steps 800]

LeNet-5 with batches of 128, as in step_cost.py, with a CSVLogger. Two trainings, one with and one without, would differ
by more from run to run than the monitor takes, so its parts are timed within one: the hooks that the Trainer calls,
and the terms of H and K that the optimizer adds up when it is asked to.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from step_cost import NETWORKS, Module, loader

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.callbacks import BSQHMonitor
from lightning_bsqh.method.iteration import Iteration


class Stopwatch:
    """Adds up the seconds spent in the functions it wraps, none of which may call another."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def measure(every: int, steps: int) -> tuple[float, float]:
    """Milliseconds per step in the monitor, and of the whole step."""
    pl.seed_everything(0, verbose=False)
    watch = Stopwatch()
    monitor = BSQHMonitor(every)
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        setattr(monitor, hook, watch.wrap(getattr(monitor, hook)))
    make, batch_size, shape, _ = NETWORKS["lenet5"]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Iteration, "terms", watch.wrap(Iteration.terms)):
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=-1,
            strategy=BSQHStrategy(),
            devices=1,
            callbacks=[monitor],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(Module(make(), "bsqh"), loader(shape, batch_size, steps))
        total = time.perf_counter() - start
    return 1000.0 * watch.seconds / steps, 1000.0 * total / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=50, help="steps between two readings")
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    own, step = measure(arguments.every, arguments.steps)
    print(f"every {arguments.every} steps: {own:.3f} of {step:.2f} ms per step, {own / step:.2%}")


if __name__ == "__main__":
    main()
