"""The demo: trains a sparse network on scikit-learn's digits and shows what came out."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shlex
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import CSVLogger, Logger
from typing_extensions import override

from lightning_bsqh.callbacks import AugmentationMonitor, PictureMonitor, SparseCheckpoint
from lightning_bsqh.callbacks._weights import count_zeros, layer_weights
from lightning_bsqh.cli.lightning_cli import BSQHCLI
from lightning_bsqh.cli.log_config import plain_config
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.report import write_report
from lightning_bsqh.report.command import how_to_open
from lightning_bsqh.report.plot import plot_training, short_names
from lightning_bsqh.trainer_access import callbacks_of

_RECIPE = "digits_lenet5.yaml"


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo gave.

    Attributes:
        test_accuracy: Share of the test images that the best sparse checkpoint gets right.
        zeros: Numbers of exact zeros and of all regularised weights of that checkpoint, by layer.
        accepted_trials: Number of accepted trials.
        rejected_trials: Number of rejected trials.
        skipped: Number of batches skipped because they were not finite.
        epsilon: ε of the last trial.
        seconds: Duration of the training.
        files: Where the results lie, by what they are.
    """

    test_accuracy: float
    zeros: dict[str, tuple[int, int]]
    accepted_trials: int
    rejected_trials: int
    skipped: int
    epsilon: float
    seconds: float
    files: dict[str, Path]

    @property
    def sparsity(self) -> float:
        """Share of exact zeros among all regularised weights."""
        return sum(zeros for zeros, _ in self.zeros.values()) / sum(size for _, size in self.zeros.values())


def main(args: Sequence[str] | None = None) -> None:
    """Runs ``lightning-bsqh demo``.

    Args:
        args: The arguments after ``demo``; None takes ``sys.argv``.

    Raises:
        SystemExit: If an argument is wrong, or a package that the demo needs is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-bsqh demo",
        description="Trains a sparse LeNet on the handwritten digits that scikit-learn carries.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=None, help="number of epochs (default: that of the recipe)")
    options = parser.parse_args(args)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, got {options.epochs}")
    # Before the training, not after it.
    missing = [name for name in ("matplotlib", "rich", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f'The demo needs {", ".join(missing)}: pip install "lightning-bsqh[recipes]"')
    _quieten()
    # The network is too small to share out, and where other programs run a second thread costs far more than it brings.
    torch.set_num_threads(1)
    print_result(run_demo(options.output, options.seed, options.epochs), options.seed)


def run_demo(output: Path, seed: int = 0, epochs: int | None = None, progress_bar: bool = True) -> DemoResult:
    """Trains by the recipe, tests the best sparse checkpoint, draws the training and writes the report.

    Args:
        output: Run folder, made if needed; what an earlier run left there is replaced.
        seed: Seed of weights and batches.
        epochs: Number of epochs; None takes the recipe's.
        progress_bar: Whether to show one.
    """
    output.mkdir(parents=True, exist_ok=True)
    arguments = ["--config", str(recipe_path(_RECIPE)), "--seed_everything", str(seed)]
    arguments += ["--trainer.default_root_dir", str(output), "--trainer.logger", "false"]
    arguments += ["--trainer.enable_model_summary", "false"]
    arguments += ["--trainer.enable_progress_bar", str(progress_bar).lower()]
    arguments += [] if epochs is None else ["--trainer.max_epochs", str(epochs)]
    wandb_logger = _wandb_logger(output)
    extra: list[L.Callback] = [] if wandb_logger is None else [PictureMonitor(every_n_steps=100)]
    if progress_bar:
        extra.append(_ProgressBar(refresh_rate=5, theme=RichProgressBarTheme(metrics_format=".4g")))
    cli = BSQHCLI(arguments, run=False, save_config_callback=None, trainer_defaults={"callbacks": extra})
    trainer, model = cli.trainer, cli.model
    csv_logger = CSVLogger(output, name="", version="")
    if wandb_logger is not None:
        wandb_logger.log_hyperparams(plain_config(cli.parser, cli.config))
    trainer.loggers = [csv_logger] if wandb_logger is None else [csv_logger, wandb_logger]
    callbacks = callbacks_of(trainer)
    (monitor,) = (callback for callback in callbacks if isinstance(callback, AugmentationMonitor))
    (checkpoint,) = (callback for callback in callbacks if isinstance(callback, SparseCheckpoint))

    start = time.perf_counter()
    trainer.fit(model, datamodule=cli.datamodule)
    seconds = time.perf_counter() - start
    weights = layer_weights(trainer, model)
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, BSQHOptimizer)  # the recipe's strategy sees to it
    report = optimizer.last_step
    assert report is not None  # there was at least one batch
    # Before the test, which puts the callbacks back to where they were at the checkpoint.
    accepted_trials, rejected_trials = monitor.accepted_trials, monitor.rejected_trials
    # Puts the checkpoint's weights into the model, so what is counted below is what was tested.
    (metrics,) = trainer.test(model, datamodule=cli.datamodule, ckpt_path=checkpoint.best_model_path, verbose=False)
    files = {
        "metrics": Path(csv_logger.log_dir) / "metrics.csv",
        "checkpoint": Path(checkpoint.best_model_path),
        "picture": output / "training.png",
    }
    if wandb_logger is not None:
        files["W&B offline run"] = _finish_wandb()
    plot_training(files["metrics"], files["picture"])
    # The settings, for the report and to repeat the run.
    cli.parser.save(cli.config, output / "config.yaml", skip_none=False, overwrite=True, multifile=False)
    if importlib.util.find_spec("plotly") is None:
        print(
            'plotly is not installed, so there will be no report (to have one: pip install "lightning-bsqh[report]").'
        )
    else:
        files["report"] = write_report([output])
    return DemoResult(
        test_accuracy=metrics["test_accuracy"],
        zeros=count_zeros(weights),
        accepted_trials=accepted_trials,
        rejected_trials=rejected_trials,
        skipped=optimizer.skipped,
        epsilon=report.epsilon,
        seconds=seconds,
        files=files,
    )


def print_result(result: DemoResult, seed: int) -> None:
    """Prints the result as a table, and where its files lie."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Small LeNet on scikit-learn's digits, seed {seed}", min_width=50)
    table.add_column("result")
    table.add_column("value", justify="right")
    table.add_row("test accuracy", f"{100.0 * result.test_accuracy:.2f} %")
    table.add_row("weights exactly zero", f"{100.0 * result.sparsity:.2f} %", end_section=True)
    names = short_names(list(result.zeros))
    for layer, (zeros, size) in result.zeros.items():
        table.add_row(f"zeros in {names[layer]}", f"{100.0 * zeros / size:.2f} % of {size:,}")
    table.add_section()
    table.add_row("accepted trials", f"{result.accepted_trials:,}")
    table.add_row("rejected trials", f"{result.rejected_trials:,}")
    table.add_row("skipped batches", f"{result.skipped:,}")
    table.add_row("final ε", f"{result.epsilon:.4g}")
    table.add_row("training time", f"{result.seconds:.0f} s")
    console = Console()
    console.print(table)
    width = max(len(name) for name in result.files)
    for name, path in result.files.items():
        # Plain, so that a path is never broken or coloured in parts.
        print(f"{name:<{width}}  {path}")
    if "report" in result.files:
        print(f"The report shows all of it. {how_to_open(result.files['report'])}")
    if "W&B offline run" in result.files:
        print(f"To upload the W&B run: wandb sync {shlex.quote(str(result.files['W&B offline run']))}")


def recipe_path(name: str) -> Path:
    """Where a recipe lies: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: If there is no such recipe.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"The recipe {name} is neither in {package / 'recipes'} nor in {package.parent / 'recipes'}."
    )


class _ProgressBar(RichProgressBar):
    """Without the logger's version, which is empty here."""

    @override
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | dict]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _quieten() -> None:
    """Leaves out messages that are of no use to who watches a demo."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # The arguments are made here and not typed; the run folder may be an earlier run's; 20 short batches.
    for message in ("LightningCLI's args", "Experiment logs directory", "Checkpoint directory", ".*does not have many"):
        warnings.filterwarnings("ignore", message=message)


def _wandb_logger(output: Path) -> Logger | None:
    try:
        import wandb
    except ModuleNotFoundError:
        print("wandb is not installed, so there will be no W&B run (to have one: pip install wandb).")
        return None
    from lightning.pytorch.loggers import WandbLogger

    # With its console capture on, W&B would garble the progress bar.
    settings = wandb.Settings(silent=True, console="off")
    return WandbLogger(project="lightning-bsqh", save_dir=output, offline=True, settings=settings)


def _finish_wandb() -> Path:
    """Closes the run, and tells its folder."""
    import wandb

    assert wandb.run is not None  # the logger has started it
    folder = Path(wandb.run.dir).parent
    wandb.finish()
    return folder
