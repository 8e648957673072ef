"""What the method promises, against what it does: full-batch and mini-batch bSQH in float64 on a smooth network.

    python benchmarks/theory.py [--iterations 3000] [--hidden 3] [--micro-batch N] [--output runs/theory]

A tanh network 6-3-3 with cross-entropy on 512 made-up samples, D = 1, Backtracking, with and without L0. It is that
small so that the residual gets beyond its first slow phase in so few iterations; its rate depends on the problem, see
--hidden 6.
Written: theory.csv (what is promised, what was measured, whether it held), theory_curves.csv and theory.png. The exit
status is 1 if a promise was broken. What is "observed" carries no promise: with mini-batches every promise is about
the batch at hand, and the objective and the residual on the whole data may go anywhere. With --micro-batch the
full-batch runs go through a Trainer with BSQHStrategy(batch_mode="full") and batches of N samples.

The Lipschitz constant Λ of ∇L_B is the largest |eigenvalue| of the Hessian, by power iteration on Hessian-vector
products, seen at five points each of segments [w, û] of trials: those of every 20th iteration, and in the end, at 21
points, the rejected trial with the largest ε. A lower bound of the true constant on the region, hence a sharper test.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L0, Backtracking, BSQHOptimizer, BSQHStrategy, PMPResidual, Regularizer, pmp_residual
from lightning_bsqh.method.augmentation import Trial

SAMPLES, BATCH = 512, 64
ETA, SIGMA, ZETA, EPSILON = 1e-2, 1.1, 0.9, 10.0
RHO = 1e-3
STRIDE = 20
#: ε of the certificate, one for all iterations so that its residuals can be compared.
CERTIFICATE_EPSILON = 1.0
# Okabe and Ito's colours, and dashes of their own for print.
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-"), ("#CC79A7", "--"))

Loss = Callable[[], Tensor]


class WatchedBacktracking(Backtracking):
    """Backtracking that shows every trial while the parameters still hold û."""

    watch: Callable[[Trial], None] | None = None

    def observe(self, trial: Trial) -> None:
        if self.watch is not None:
            self.watch(trial)
        super().observe(trial)


@dataclass
class Segment:
    """A trial: the ends w and û, and the loss that it looked at."""

    trial: Trial
    start: list[Tensor]
    end: list[Tensor]
    loss: Loss


@dataclass
class Run:
    """One training and what was seen on the way."""

    name: str
    full: bool
    objectives: list[float] = field(default_factory=list)
    rises: list[float] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    batch_decreases: list[float] = field(default_factory=list)
    epsilons: list[float] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    residuals: dict[int, float] = field(default_factory=dict)
    certificate: PMPResidual | None = None
    lipschitz: float = 0.0
    zeros: float = 0.0

    @property
    def bound(self) -> float:
        """Λ/2 + η."""
        return self.lipschitz / 2.0 + ETA

    @property
    def decrease(self) -> float:
        """J⁰ − inf J, the best J for inf J; with mini-batches only the decreases on the batches themselves add up."""
        return self.objectives[0] - min(self.objectives) if self.full else math.fsum(self.batch_decreases)


@dataclass(frozen=True)
class Check:
    """One promise. ``holds`` is None where nothing is promised."""

    run: str
    what: str
    measured: float
    limit: float | None
    holds: bool | None

    @property
    def verdict(self) -> str:
        return "observed" if self.holds is None else "holds" if self.holds else "FAILS"


def problem(hidden: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    # So much noise that no weights fit all samples: a minimum is attained, and the residual can be seen to fall.
    noise = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    return network, x, (x[:, :3] + x[:, :3] * x[:, 3:] + noise).argmax(1)


class PowerIteration:
    """The largest |eigenvalue| of the Hessian of a loss, by Hessian-vector products from a warm start."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        generator = torch.Generator().manual_seed(2)
        self._direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def __call__(self, loss: Loss, limit: int = 30, tolerance: float = 1e-3) -> float:
        gradients = torch.autograd.grad(loss(), self._parameters, create_graph=True)
        value = 0.0
        for _ in range(limit):
            length = _norm(self._direction)
            unit = [v / length for v in self._direction]
            product = torch.autograd.grad(gradients, self._parameters, grad_outputs=unit, retain_graph=True)
            previous, value = value, _norm(product)
            if value == 0.0:
                return 0.0
            # A little noise, so that a warm start cannot stay on what has become a smaller eigenvalue.
            self._direction = [v / value + 1e-3 * torch.randn_like(v) / math.sqrt(v.numel()) for v in product]
            if abs(value - previous) <= tolerance * value:
                break
        return value


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(t.square().sum()) for t in tensors))


def largest_curvature(parameters: Sequence[Tensor], segment: Segment, power: PowerIteration, points: int) -> float:
    """The largest |eigenvalue| seen on a segment; the parameters are put back."""
    kept = _copy(parameters)
    values = []
    for i in range(points):
        t = i / (points - 1)
        _put(parameters, [a + t * (b - a) for a, b in zip(segment.start, segment.end, strict=True)])
        values.append(power(segment.loss))
    _put(parameters, kept)
    return max(values)


def _copy(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


class InTrainer(L.LightningModule):
    """The problem as a module of Lightning, whose optimizer is handed in."""

    def __init__(self, network: nn.Module, optimizer: BSQHOptimizer) -> None:
        super().__init__()
        self.network = network
        self._optimizer = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> BSQHOptimizer:
        return self._optimizer


class AroundIterations(L.Callback):
    """Calls before and after every iteration with its number."""

    def __init__(self, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        self._before, self._after = before, after

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._after(trainer.current_epoch)


def run_in_trainer(
    module: InTrainer, loader: DataLoader[Any], iterations: int, before: Callable[[int], None], after: Any
) -> None:
    """All iterations, each one an epoch of a Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=BSQHStrategy(),
        max_epochs=iterations,
        callbacks=[AroundIterations(before, after)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)


def train(
    name: str, full: bool, regularizer: Regularizer, iterations: int, hidden: int, micro_batch: int | None = None
) -> Run:
    network, x, y = problem(hidden)
    parameters = list(network.parameters())
    weights = [p for p in parameters if p.dim() >= 2]
    rule = WatchedBacktracking(EPSILON, sigma=SIGMA, zeta=ZETA, schedule=False)
    in_trainer = full and micro_batch is not None
    optimizer = BSQHOptimizer(
        network,
        regularizer=regularizer,
        augmentation=rule,
        metric="euclidean",
        eta=ETA,
        max_trials=100,
        **({"batch_mode": "full", "kappa": 0.0} if in_trainer else {}),
    )
    run = Run(name, full)
    segments: list[Segment] = []
    worst: Segment | None = None
    power = PowerIteration(parameters)

    def loss_on(rows: Tensor | slice) -> Loss:
        return lambda: functional.cross_entropy(network(x[rows]), y[rows])

    @torch.no_grad()
    def objective(loss: Loss) -> float:
        return float(loss()) + float(regularizer.penalty(weights))

    def watch(trial: Trial) -> None:
        nonlocal worst
        run.trials.append(trial)
        run.epsilons.append(trial.epsilon)
        segments.append(Segment(trial, start, _copy(parameters), loss))
        if not trial.accepted and (worst is None or trial.epsilon > worst.trial.epsilon):
            worst = segments[-1]

    assert isinstance(optimizer.augmentation, WatchedBacktracking)
    optimizer.augmentation.watch = watch
    everything = loss_on(slice(None))
    generator = torch.Generator().manual_seed(3)
    certified = _logarithmic(iterations)
    run.objectives.append(objective(everything))
    loss, start, objective_before = everything, _copy(parameters), math.nan

    def before(k: int) -> None:
        nonlocal loss, start, objective_before
        batch = slice(None) if full else torch.randperm(SAMPLES, generator=generator)[:BATCH]
        loss, start = loss_on(batch), _copy(parameters)
        segments.clear()
        if k in certified:
            run.certificate = _certify(network, everything, regularizer)
            run.residuals[k + 1] = run.certificate.total
        objective_before = objective(loss)

    def after(k: int) -> None:
        report = optimizer.last_step
        assert report is not None
        objective_after = objective(loss)
        run.taus.append(report.tau)
        run.batch_decreases.append(objective_before - objective_after)
        if report.accepted:
            run.rises.append(objective_after - objective_before)
            run.gains.append(report.hamiltonian_gain)
        run.objectives.append(objective_after if full else objective(everything))
        if k % STRIDE == 0:
            curvatures = [largest_curvature(parameters, segment, power, 5) for segment in segments]
            run.lipschitz = max([run.lipschitz, *curvatures])

    if in_trainer:
        loader = DataLoader(TensorDataset(x, y), batch_size=micro_batch)
        run_in_trainer(InTrainer(network, optimizer), loader, iterations, before, after)
    else:
        for k in range(iterations):
            before(k)
            optimizer.step(loss)
            after(k)
    if worst is not None:
        run.lipschitz = max(run.lipschitz, largest_curvature(parameters, worst, power, 21))
    run.certificate = _certify(network, everything, regularizer)
    run.residuals[iterations + 1] = run.certificate.total
    run.zeros = optimizer.sparsity()
    return run


def _certify(network: nn.Module, loss: Loss, regularizer: Regularizer) -> PMPResidual:
    return pmp_residual(network, loss, regularizer=regularizer, epsilon=CERTIFICATE_EPSILON)


def _logarithmic(iterations: int) -> set[int]:
    """About forty iterations per factor of ten, so that the curve is even on a logarithmic axis."""
    count = max(int(40 * math.log10(max(iterations, 2))), 2)
    return {round(iterations ** (i / count)) - 1 for i in range(count)}


def rate(run: Run) -> float:
    """Slope of ln(residual) against ln k by least squares, over the last nine tenths of the iterations."""
    last = max(run.residuals)
    points = [(math.log(k), math.log(r)) for k, r in run.residuals.items() if k >= last / 10 and r > 0.0]
    if len(points) < 2:
        return math.nan
    mean_k, mean_r = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
    above = math.fsum((a - mean_k) * (b - mean_r) for a, b in points)
    below = math.fsum((a - mean_k) ** 2 for a, _ in points)
    return above / below if below > 0.0 else math.nan


def checks(run: Run) -> list[Check]:
    # The losses are compared apart from the optimizer, as a difference of numbers of order one.
    rounding = 1e-14 * max(abs(j) for j in run.objectives)
    rise, taus = max(run.rises, default=math.nan), math.fsum(run.taus)
    where = "J" if run.full else "J_B on its own batch"
    rejected = max((t.epsilon for t in run.trials if not t.accepted), default=math.nan)
    # Of accepted steps: ⟨G, s⟩ − ρΔR ≤ −ΔJ + Λτ/2 and τ ≤ −ΔJ/η, so their gains add up, too.
    gains, gains_limit = math.fsum(run.gains), run.decrease * (1.0 + run.lipschitz / (2.0 * ETA))
    below = next((i for i, e in enumerate(run.epsilons) if e <= run.bound), None)
    later = max(run.epsilons[below:]) if below is not None else math.nan
    first, last = run.residuals[1], run.residuals[max(run.residuals)]
    assert run.certificate is not None

    def check(what: str, measured: float, limit: float | None = None, holds: bool | None = None) -> Check:
        return Check(run.name, what, measured, limit, holds)

    drop = "J⁰ − inf J" if run.full else "Σ decrease of J_B"
    result = [
        check(f"largest rise of {where}, accepted steps", rise, 0.0, rise <= rounding),
        check(f"Σ τ ≤ ({drop})/η", taus, run.decrease / ETA, taus <= (run.decrease + rounding) / ETA),
        check(f"Σ r at ε_k ≤ ({drop})(1 + Λ/2η)", gains, gains_limit, gains <= gains_limit + rounding / ETA),
        check("Λ, largest seen on segments", run.lipschitz),
        check("trials with ε > Λ/2 + η, of all", sum(e > run.bound for e in run.epsilons), len(run.epsilons)),
        check("largest ε rejected ≤ Λ/2 + η", rejected, run.bound, not rejected > run.bound),
        check("largest ε once below ≤ σ(Λ/2 + η)", later, SIGMA * run.bound, not later > SIGMA * run.bound),
        check("residual r at the start", first),
        check("residual r at the end", last, first, last < first if run.full else None),
        check("rate: slope of ln r against ln k", rate(run)),
        check("share of weights within 1e-3", run.certificate.satisfied(1e-3)),
        check("share of weights within 1e-6", run.certificate.satisfied(1e-6)),
        check("share of weights exactly zero", run.zeros),
        check("J at the end, whole data", run.objectives[-1]),
    ]
    if not run.full:
        rises = max(b - a for a, b in zip(run.objectives, run.objectives[1:], strict=False))
        result.append(check("largest rise of J, whole data", rises))
    return result


def print_table(results: Sequence[Check], console: Console) -> None:
    table = Table(title=f"η = {ETA:g}, σ = {SIGMA:g}, ζ = {ZETA:g}, ε⁰ = {EPSILON:g}, ρ = {RHO:g} with L0")
    for column in ("run", "what", "measured", "limit", "verdict"):
        table.add_column(column, justify="right" if column in ("measured", "limit") else "left")
    for i, c in enumerate(results):
        first = i == 0 or results[i - 1].run != c.run
        if first and i:
            table.add_section()
        limit = "" if c.limit is None else f"{c.limit:.4g}"
        style = "bold red" if c.holds is False else ""
        table.add_row(c.run if first else "", c.what, f"{c.measured:.4g}", limit, c.verdict, style=style)
    console.print(table)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def draw(runs: Sequence[Run], png: Path) -> None:
    """Objective, Στ, ε and residual over the iterations, all on logarithmic axes."""
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    for run, (colour, dash) in zip(runs, STYLES, strict=True):
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.3}
        k = range(1, len(run.taus) + 1)
        best = min(run.objectives)
        top_left.plot(
            [i for i in k if run.objectives[i - 1] > best],
            [j - best for j in run.objectives[:-1] if j > best],
            label=run.name,
            **style,
        )
        sums = torch.tensor(run.taus, dtype=torch.float64).cumsum(0)
        top_right.plot(k, sums, label=run.name, **style)
        top_right.axhline(run.decrease / ETA, color=colour, linestyle=":", linewidth=1.3)
        bottom_left.plot(range(1, len(run.epsilons) + 1), run.epsilons, label=run.name, **style)
        bottom_left.axhline(SIGMA * run.bound, color=colour, linestyle=":", linewidth=1.3)
        bottom_right.plot(
            list(run.residuals), list(run.residuals.values()), label=f"{run.name}: k^{rate(run):.2f}", **style
        )
    panels = (
        (top_left, "objective on the whole data", "iteration k", "J − best J"),
        (top_right, "summed steps (dotted: decrease of the objective / η)", "iteration k", "Σ τ"),
        (bottom_left, "augmentation (dotted: σ(Λ/2 + η), Λ measured)", "trial", "ε"),
        (bottom_right, "augmented PMP residual on the whole data", "iteration k", f"r at ε = {CERTIFICATE_EPSILON:g}"),
    )
    for axes, title, x_label, y_label in panels:
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    figure.savefig(png, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3000, help="per run, at least 10")
    parser.add_argument("--hidden", type=int, default=3, help="width of the hidden layer")
    parser.add_argument("--micro-batch", type=int, help="full-batch runs through a Trainer, in batches of so many")
    parser.add_argument("--output", type=Path, default=Path("runs/theory"), help="folder for tables and figure")
    options = parser.parse_args(arguments)
    if options.iterations < 10:
        parser.error(f"--iterations must be at least 10, got {options.iterations}")
    if options.hidden < 1:
        parser.error(f"--hidden must be at least 1, got {options.hidden}")
    if options.micro_batch is not None and options.micro_batch < 1:
        parser.error(f"--micro-batch must be at least 1, got {options.micro_batch}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        runs = [
            train(
                f"{'full batch' if full else 'mini-batch'}, {label}",
                full,
                regularizer,
                options.iterations,
                options.hidden,
                options.micro_batch,
            )
            for full in (True, False)
            for label, regularizer in (("no R", L0(0.0)), ("L0", L0(RHO)))
        ]
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    results = [c for run in runs for c in checks(run)]
    console = Console(width=None if sys.stdout.isatty() else 110)
    print_table(results, console)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    rows = [(c.run, c.what, c.measured, "" if c.limit is None else c.limit, c.verdict) for c in results]
    write_csv(output / "theory.csv", ("run", "what", "measured", "limit", "verdict"), rows)
    write_csv(
        output / "theory_curves.csv",
        ("run", "iteration", "objective", "tau", "residual"),
        (
            (run.name, k, run.objectives[k - 1], tau, run.residuals.get(k, ""))
            for run in runs
            for k, tau in enumerate(run.taus, start=1)
        ),
    )
    draw(runs, output / "theory.png")
    failed = [c for c in results if c.holds is False]
    held = sum(c.holds is True for c in results)
    console.print(
        f"{held} promises held, {len(failed)} failed; {options.iterations} iterations a run, {seconds:.0f} s."
    )
    for c in failed:
        console.print(f"FAILS: {c.run}: {c.what}: {c.measured:.6g}, limit {c.limit:.6g}", style="bold red")
    console.print(f"Written: {output}/theory.csv, theory_curves.csv, theory.png", soft_wrap=True)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
