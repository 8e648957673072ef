"""The command ``lightning-bsqh demo``: trains a sparse network on scikit-learn's digits and shows what came out."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shlex
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from typing_extensions import override

from lightning_bsqh.callbacks import AugmentationMonitor, PictureMonitor, SparseCheckpoint
from lightning_bsqh.callbacks._weights import count_zeros, layer_weights
from lightning_bsqh.cli.lightning_cli import BSQHCLI
from lightning_bsqh.cli.log_config import plain_config, save_beside
from lightning_bsqh.cli.recipes import recipe_path
from lightning_bsqh.export.before_after import KEPT, before_after, keep
from lightning_bsqh.export.measuring import aligned
from lightning_bsqh.namespace import FABRIC, NAME, CSVLogger, Logger, RichProgressBar, RichProgressBarTheme, pl
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.report import write_report
from lightning_bsqh.report.command import how_to_open
from lightning_bsqh.report.names import display_names
from lightning_bsqh.trainer_access import callbacks_of

_RECIPE = "digits_lenet5"
_NEEDED = ("rich", "sklearn")
# Says whose folder it is; without it nothing in a folder is touched.
_MARK = ".lightning-bsqh-demo"
# Seconds; a forward of this network takes a fraction of a millisecond.
_TIMED = 0.5
_Callback = TypeVar("_Callback", bound=pl.Callback)


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo gave.

    Attributes:
        test_accuracy: Share of the test images that the best sparse checkpoint gets right.
        zeros: Numbers of exact zeros and of all regularized weights of that checkpoint, by layer.
        accepted_trials: Number of accepted trials.
        rejected_trials: Number of rejected trials.
        skipped: Number of batches skipped because they were not finite.
        epsilon: ε of the last trial.
        seconds: Duration of the training.
        files: Where the results lie, by what they are.
        table: Rows of the table that ``lightning-bsqh export --shrink`` prints; none without safetensors.
    """

    test_accuracy: float
    zeros: dict[str, tuple[int, int]]
    accepted_trials: int
    rejected_trials: int
    skipped: int
    epsilon: float
    seconds: float
    files: dict[str, Path]
    table: list[list[str]]

    @property
    def sparsity(self) -> float:
        """Share of exact zeros among all regularized weights."""
        return sum(zeros for zeros, _ in self.zeros.values()) / sum(size for _, size in self.zeros.values())


def run(options: argparse.Namespace) -> int:
    """Runs ``lightning-bsqh demo``.

    Args:
        options: ``seed``, ``output`` and ``epochs``, None for the recipe's.

    Raises:
        SystemExit: If a package that the demo needs is not installed, or ``output`` holds somebody's files.
    """
    # Before the training, not after it.
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f'The demo needs {", ".join(missing)}: pip install "lightning-bsqh[recipes]"')
    _quieten()
    # The network is too small to share out, and where other programs run a second thread costs far more than it brings.
    torch.set_num_threads(1)
    try:
        result = run_demo(options.output, options.seed, options.epochs)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    print_result(result, options.seed)
    return 0


def run_demo(output: Path, seed: int = 0, epochs: int | None = None, progress_bar: bool = True) -> DemoResult:
    """Trains by the recipe, tests the best sparse checkpoint, and writes the report.

    Args:
        output: Run folder, made if needed; what an earlier demo left there is replaced.
        seed: Seed of weights and batches.
        epochs: Number of epochs; None takes the recipe's.
        progress_bar: Whether to show one.

    Raises:
        FileExistsError: If ``output`` is there and holds anything but what an earlier demo left.
    """
    _claim(output)
    wandb_logger = _wandb_logger(output)
    cli = _cli(output, seed, epochs, progress_bar, wandb_logger is not None)
    trainer, model = cli.trainer, cli.model
    csv_logger = CSVLogger(output, name="", version="")
    if wandb_logger is not None:
        wandb_logger.log_hyperparams(plain_config(cli.parser, cli.config))
    trainer.loggers = [csv_logger] if wandb_logger is None else [csv_logger, wandb_logger]
    monitor = _only(trainer, AugmentationMonitor)
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
    checkpoint = _only(trainer, SparseCheckpoint).best_model_path
    # Puts the checkpoint's weights into the model, so what is counted below is what was tested.
    (metrics,) = trainer.test(model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)
    files = {"metrics": Path(csv_logger.log_dir) / "metrics.csv", "checkpoint": Path(checkpoint)}
    if wandb_logger is not None:
        files["W&B offline run"] = _finish_wandb()
    # The settings, for the report and to repeat the run.
    save_beside(output / "config.yaml", cli.parser.dump(cli.config, skip_none=False))
    exported = _exported(output)
    return DemoResult(
        test_accuracy=metrics["test_accuracy"],
        zeros=count_zeros(weights),
        accepted_trials=accepted_trials,
        rejected_trials=rejected_trials,
        skipped=optimizer.skipped,
        epsilon=report.epsilon,
        seconds=seconds,
        files=files | _report(output),
        table=exported,
    )


def _claim(output: Path) -> None:
    """Takes a folder for the demo, if it is new, empty, or an earlier demo's; what that left is removed."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file: name a folder with --output.")
    mark = output / _MARK
    if output.is_dir() and any(output.iterdir()) and not mark.is_file():
        raise FileExistsError(
            f"The folder {output} holds files that no demo has left, and they are not to be replaced: name another with"
            " --output."
        )
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text("Made by `lightning-bsqh demo`, which replaces what it has left here.\n", encoding="utf-8")
    for name in ("config.yaml", "report.html", KEPT):
        # Also a link, which would be followed.
        (output / name).unlink(missing_ok=True)


def _cli(output: Path, seed: int, epochs: int | None, progress_bar: bool, pictures: bool) -> BSQHCLI:
    arguments = ["--config", str(recipe_path(_RECIPE)), "--seed_everything", str(seed)]
    arguments += ["--trainer.default_root_dir", str(output), "--trainer.logger", "false"]
    arguments += ["--trainer.enable_model_summary", "false"]
    arguments += ["--trainer.enable_progress_bar", str(progress_bar).lower()]
    arguments += [] if epochs is None else ["--trainer.max_epochs", str(epochs)]
    extra: list[pl.Callback] = [PictureMonitor(every_n_steps=100)] if pictures else []
    if progress_bar:
        extra.append(_ProgressBar(refresh_rate=5, theme=RichProgressBarTheme(metrics_format=".4g")))
    return BSQHCLI(arguments, run=False, save_config_callback=None, trainer_defaults={"callbacks": extra})


def _only(trainer: pl.Trainer, kind: type[_Callback]) -> _Callback:
    (callback,) = (callback for callback in callbacks_of(trainer) if isinstance(callback, kind))
    return callback


def _exported(output: Path) -> list[list[str]]:
    if importlib.util.find_spec("safetensors") is None:
        print(
            "safetensors is not installed, so sizes before and after are left out (to have them:"
            ' pip install "lightning-bsqh[export]").'
        )
        return []
    rows = before_after(output, _TIMED)
    keep(rows, output)
    return rows


def _report(output: Path) -> dict[str, Path]:
    if importlib.util.find_spec("jinja2") is None:
        print(
            'jinja2 is not installed, so there will be no report (to have one: pip install "lightning-bsqh[report]").'
        )
        return {}
    return {"report": write_report([output])}


def print_result(result: DemoResult, seed: int) -> None:
    """Prints the result as a table, and where its files lie."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Small LeNet on scikit-learn's digits, seed {seed}", min_width=50)
    table.add_column("result")
    table.add_column("value", justify="right")
    table.add_row("test accuracy", f"{100.0 * result.test_accuracy:.2f} %")
    table.add_row("weights exactly zero", f"{100.0 * result.sparsity:.2f} %", end_section=True)
    names = display_names(list(result.zeros))
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
        # Plain, so that a path is never broken or colored in parts.
        print(f"{name:<{width}}  {path}")
    if "report" in result.files:
        print(f"The report shows all of it. {how_to_open(result.files['report'])}")
    if "W&B offline run" in result.files:
        print(f"To upload the W&B run: wandb sync {shlex.quote(str(result.files['W&B offline run']))}")
    if result.table:
        folder = shlex.quote(str(result.files["metrics"].parent))
        print(
            f"\nWithout its zeros (lightning-bsqh export {folder} --shrink; docs/export.md):\n{aligned(result.table)}"
        )


class _ProgressBar(RichProgressBar):
    """Without the logger's version, which is empty here."""

    @override
    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int | str | float | dict]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _quieten() -> None:
    """Leaves out messages that are of no use to who watches a demo."""
    logging.getLogger(NAME).setLevel(logging.WARNING)
    logging.getLogger(FABRIC).setLevel(logging.WARNING)
    # The arguments are made here and not typed; the run folder may be an earlier run's; 20 short batches.
    for message in ("LightningCLI's args", "Experiment logs directory", "Checkpoint directory", ".*does not have many"):
        warnings.filterwarnings("ignore", message=message)


def _wandb_logger(output: Path) -> Logger | None:
    try:
        import wandb
    except ModuleNotFoundError:
        print("wandb is not installed, so there will be no W&B run (to have one: pip install wandb).")
        return None
    from lightning_bsqh.namespace import WandbLogger

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
