"""A wrong argument is named, with a sentence and not with what Python says by itself."""

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, BSQHOptimizer, BSQHStrategy, Cardinality, Curvature, Discrete
from lightning_bsqh.cli import main
from tests.cases.helpers import refuses, works_or_names

HUGE = 10**400


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


CALLS = {
    "eta-huge": (lambda: BSQHOptimizer(net(), eta=HUGE), "eta"),
    "levels-huge": (lambda: Discrete([0.0, HUGE]), "levels"),
    "kappa-huge": (lambda: BSQHOptimizer(net(), batch_mode="full", kappa=HUGE), "kappa"),
    "rho-huge": (lambda: L0(rho=HUGE), "rho"),
    "sparsity-huge": (lambda: Cardinality(HUGE), "sparsity"),
    "strategy-metric-dict": (lambda: BSQHStrategy(metric={}), "metric"),
    "params-number": (lambda: BSQHOptimizer(5), "params"),
    "metric-list": (lambda: BSQHOptimizer(net(), metric=[]), "metric"),
    "layers-number": (lambda: BSQHOptimizer(net(), layers=5), "layers"),
    "strategy-layers-number": (lambda: BSQHStrategy(layers=5), "layers"),
    "regularize-number": (lambda: BSQHOptimizer(net(), regularize=5), "regularize"),
    "schedule-text": (lambda: Curvature(schedule="a"), "schedule"),
    "params-none": (lambda: BSQHOptimizer(None), "params"),
}


@pytest.mark.parametrize("what", CALLS)
def test_named(what):
    """The error names the argument."""
    call, word = CALLS[what]
    try:
        refuses(call, word)
    except OverflowError as error:
        pytest.fail(f"says nothing to a user: {error}")


def test_single_parameter():
    """A single Parameter in place of a list of them works, or the error says what params is to be."""
    p = nn.Parameter(torch.randn(3, 3))

    def call():
        BSQHOptimizer(p, total_steps=5).step(lambda: p.square().sum())

    works_or_names(call, "params")


@pytest.mark.parametrize(
    "argument",
    ["--trainer.strategy.max_trials=0", "--trainer.strategy.eta=-1", "--trainer.strategy.regularizer.sparsity=2.0"],
)
def test_command_line(argument, capsys):
    """An argument out of its range ends the command, without a traceback, with its name."""
    args = ["fit", "--model=lightning.pytorch.demos.boring_classes.BoringModel", "--trainer.accelerator=cpu"]
    args += ["--trainer.strategy=lightning_bsqh.BSQHStrategy"]
    if "regularizer" in argument:
        args += ["--trainer.strategy.regularizer=lightning_bsqh.Cardinality"]
    try:
        with pytest.raises(SystemExit) as ended:
            main([*args, argument])
    except ValueError as error:
        pytest.fail(f"a traceback: {error}")
    said = str(ended.value) + capsys.readouterr().err
    assert argument.partition("=")[0].rpartition(".")[2] in said
