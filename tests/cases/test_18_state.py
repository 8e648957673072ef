"""load_state_dict refuses what does not fit, before anything is changed."""

import copy

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, Backtracking, BSQHOptimizer
from tests.cases.helpers import CLEAR, alike, check_names


def trained(width=8, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
    x = torch.randn(4, 4)
    optimizer = BSQHOptimizer(net, **{"regularizer": L0(rho=1e-5), "total_steps": 9, **options})
    for _ in range(3):
        optimizer.step(lambda: net(x).square().mean())
    return optimizer


def nan_epsilon(state):
    state["bsqh"]["augmentation"]["epsilon"] = float("nan")


def negative_epsilon(state):
    state["bsqh"]["augmentation"]["epsilon"] = -1.0


def nan_mean(state):
    state["state"][0]["mean_square"].fill_(float("nan"))


def text_step(state):
    state["bsqh"]["step"] = "x"


def without_step(state):
    del state["bsqh"]["step"]


SITUATIONS = {
    "other-shapes": (lambda: trained(5).state_dict(), None, ("shape", "size")),
    "other-rule": (lambda: trained(augmentation=Backtracking()).state_dict(), None, ("augmentation", "rule", "Curv")),
    "nan-epsilon": (lambda: trained().state_dict(), nan_epsilon, ("epsilon",)),
    "negative-epsilon": (lambda: trained().state_dict(), negative_epsilon, ("epsilon",)),
    "nan-mean-square": (lambda: trained().state_dict(), nan_mean, ("mean_square", "metric", "finite")),
    "text-for-a-number": (lambda: trained().state_dict(), text_step, ("step",)),
    "missing-key": (lambda: trained().state_dict(), without_step, ("step",)),
}


@pytest.mark.parametrize("what", SITUATIONS)
def test_refused(what):
    """The error names what does not fit, and the optimizer is as it was."""
    make, change, words = SITUATIONS[what]
    state = copy.deepcopy(make())
    if change is not None:
        change(state)
    optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    try:
        optimizer.load_state_dict(state)
    except CLEAR as error:
        check_names(error, *words)
    except KeyError as error:
        pytest.fail(f"says nothing to a user: KeyError: {error}")
    else:
        pytest.fail("loaded without a word")
    assert alike(before, optimizer.state_dict())
