"""Whatever a user passes for an option is taken, or refused by a sentence that names the option."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lightning_bsqh
from lightning_bsqh import callbacks

#: What Python says by itself, and no user can make anything of.
RAW = re.compile(
    r"object is not|is not iterable"
    r"|not callable|subscriptable|unhashable|not supported between|has no attribute"
    r"|too large to convert|string or a real number|could not convert|invalid literal|can't multiply|ambiguous"
    r"|Exceeds the limit|must be real number|unexpected keyword|cannot unpack|not enough values|too many values"
    r"|can't optimize"
)


class Hostile:
    """Can be neither printed nor compared nor turned into a truth."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    __hash__ = None  # type: ignore[assignment]


ODD: list[Any] = [
    10**400,
    -(10**400),
    10**5000,
    float("nan"),
    float("inf"),
    1j,
    Decimal("0.5"),
    5,
    -1,
    0,
    True,
    None,
    "",
    "a",
    b"a",
    [],
    {},
    (),
    [None],
    ["a", 3],
    {"a": 1},
    {3: 4},
    set(),
    object(),
    object,
    Hostile(),
    torch.ones(2),
    torch.tensor(0.5),
    range(3),
    (0.5, "a"),
    (0.9, 0.1),
    ("a", "b"),
    lambda: None,
    nn.Linear(2, 2),
]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


#: How to make each kind of object that has options, and the class whose options they are.
MAKERS: dict[str, tuple[Callable[..., Any], type]] = {
    name: (getattr(lightning_bsqh, name), getattr(lightning_bsqh, name))
    for name in ("L0", "L1", "L2", "ElasticNet", "LHalf", "LTwoThirds", "GroupL0", "Cardinality", "Box", "Discrete")
} | {
    "Backtracking": (lightning_bsqh.Backtracking, lightning_bsqh.Backtracking),
    "Curvature": (lightning_bsqh.Curvature, lightning_bsqh.Curvature),
    "BSQHStrategy": (lightning_bsqh.BSQHStrategy, lightning_bsqh.BSQHStrategy),
    "BSQHOptimizer": (lightning_bsqh.BSQHOptimizer, lightning_bsqh.BSQHOptimizer),
    "MagnitudePruning": (callbacks.MagnitudePruning, callbacks.MagnitudePruning),
    "SparsityMonitor": (callbacks.SparsityMonitor, callbacks.SparsityMonitor),
    "AugmentationMonitor": (callbacks.AugmentationMonitor, callbacks.AugmentationMonitor),
    "HamiltonianMonitor": (callbacks.HamiltonianMonitor, callbacks.HamiltonianMonitor),
    "BSQHMonitor": (callbacks.BSQHMonitor, callbacks.BSQHMonitor),
    "PictureMonitor": (callbacks.PictureMonitor, callbacks.PictureMonitor),
}
REQUIRED = {"Discrete": {"levels": (0.0, 1.0)}, "ElasticNet": {"rho_l1": 0.1, "rho_l2": 0.1}}
#: An option in its own range that leaves nothing of that of another one.
OPPOSITE = {"low": "high", "epsilon_min": "epsilon"}
#: Those of Lightning's own, which the strategy hands on.
FOREIGN = {"accelerator", "checkpoint_io", "precision_plugin"}


def options() -> list[tuple[str, str]]:
    found = []
    for kind, (_, cls) in MAKERS.items():
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.kind != inspect.Parameter.VAR_KEYWORD and name not in FOREIGN:
                found.append((kind, name))
    return found


def refusal(kind: str, option: str, value: Any) -> Exception | None:
    """What making one with this option raises."""
    make, _ = MAKERS[kind]
    arguments: dict[str, Any] = {**REQUIRED.get(kind, {}), option: value}
    if kind == "BSQHOptimizer":
        arguments.setdefault("params", network())
    if option in ("kappa", "max_iterations", "count_samples", "reuse"):
        arguments["batch_mode"] = "full"
    try:
        make(**arguments)
    except (ValueError, TypeError) as error:
        return error
    return None


@pytest.mark.parametrize(("kind", "option"), options())
def test_refused_by_name(kind: str, option: str) -> None:
    for value in ODD:
        error = refusal(kind, option, value)
        if error is not None:
            text = str(error)
            assert option in text or OPPOSITE.get(option, option) in text, f"{text} does not name {option}"
            assert not RAW.search(text), text
            assert "\n" not in text
            assert len(text) < 700


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(options()), value=JUNK)
def test_generated_values(place: tuple[str, str], value: Any) -> None:
    error = refusal(*place, value)
    if error is not None:
        assert place[1] in str(error) or OPPOSITE.get(place[1], place[1]) in str(error)
        assert not RAW.search(str(error))


@pytest.mark.parametrize("option", [{"kappa": 1e-3}, {"reuse": False}, {"max_iterations": 3}, {"count_samples": len}])
def test_options_that_the_mode_would_ignore(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(option))}=.* is for batch_mode='full'"):
        lightning_bsqh.BSQHStrategy(**option)


def test_a_single_parameter_is_trained() -> None:
    parameter = nn.Parameter(torch.randn(3, 3))
    before = parameter.detach().clone()
    lightning_bsqh.BSQHOptimizer(parameter, total_steps=5).step(lambda: parameter.square().sum())
    assert not torch.equal(parameter, before)
