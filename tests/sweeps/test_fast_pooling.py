"""The quick pooling against torch's own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lightning_bsqh.sweeps import fast_pooling
from lightning_bsqh.sweeps.fast_pooling import (
    FastPooling,
    PoolingChoice,
    max_pool2x2_with_positions,
    tiled_max_pool2d,
)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(3, 9), st.integers(3, 9)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    nan=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_same_as_max_pool2d(shape: tuple[int, ...], window: tuple[int, int], nan: bool, seed: int) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    if nan:
        images[0, 0, 0, 0] = float("nan")
    expected = functional.max_pool2d(images, window)
    torch.testing.assert_close(tiled_max_pool2d(images, *window), expected, rtol=0, atol=0, equal_nan=True)


CALLS = [
    ({"kernel_size": 2}, True),
    ({"kernel_size": (2, 3), "stride": (2, 3)}, True),
    ({"kernel_size": 2, "stride": 1}, False),
    ({"kernel_size": 3, "stride": 2, "padding": 1}, False),
    ({"kernel_size": 2, "dilation": 2, "stride": 2}, False),
    ({"kernel_size": 2, "ceil_mode": True}, False),
    ({"kernel_size": 2, "return_indices": True}, False),
    ({"kernel_size": 4}, False),
]


@pytest.mark.parametrize(("options", "quick"), CALLS)
def test_is_used_only_where_it_is_the_same(options: dict[str, object], quick: bool) -> None:
    images = torch.randn(2, 3, 9, 9)
    expected = functional.max_pool2d(images, **options)
    with patch.object(fast_pooling, "tiled_max_pool2d", wraps=tiled_max_pool2d) as spy:
        with torch.no_grad(), FastPooling():
            actual = functional.max_pool2d(images, **options)
        assert spy.called == quick
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    channels=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_maxima_and_gradient_with_ties(shape: tuple[int, ...], channels: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that most windows have several maxima.
    images = torch.randint(-2, 2, shape, generator=generator).double().relu_()
    images = (images if channels else images[0]).requires_grad_()
    expected = functional.max_pool2d(images, 2)
    with patch.object(fast_pooling, "max_pool2x2_with_positions", wraps=max_pool2x2_with_positions) as spy:
        with FastPooling():
            actual = functional.max_pool2d(images, 2)
        assert spy.called
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (reference,) = torch.autograd.grad(expected, images, weights)
    (gradient,) = torch.autograd.grad(actual, images, weights)
    torch.testing.assert_close(gradient, reference, rtol=0, atol=0)


def test_second_derivatives() -> None:
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)

    def pooled(x: torch.Tensor) -> torch.Tensor:
        with FastPooling():
            return functional.max_pool2d(x.sin(), 2)

    assert torch.autograd.gradcheck(pooled, images)
    assert torch.autograd.gradgradcheck(pooled, images)


def test_other_windows_with_a_graph_go_to_torch() -> None:
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    with FastPooling():
        pooled = functional.max_pool2d(images, 3)
    pooled.sum().backward()
    assert images.grad is not None
    assert torch.count_nonzero(images.grad) == pooled.numel()


def test_modules_and_compiled_modules() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2), torch.nn.ReLU())
    images = torch.randn(2, 1, 10, 10)
    expected = network(images)
    with torch.no_grad(), FastPooling():
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(torch.compile(network, backend="eager")(images), expected)


# ---------------------------------------------------------------------- where it is active


def mode_is_active() -> bool:
    return torch.overrides._len_torch_function_stack() > 0


def test_it_is_active_only_where_it_has_been_of_use() -> None:
    images = torch.randn(1, 1, 4, 4)
    used, unused, late = PoolingChoice(2), PoolingChoice(2), PoolingChoice(2)
    for step in range(4):
        for choice, pools in ((used, step == 1), (unused, False), (late, step == 3)):
            with choice.forward():
                assert mode_is_active() == (step < 2 or choice is used)
                if pools:
                    functional.max_pool2d(images, 2)
        assert not mode_is_active()


def test_an_exception_ends_it() -> None:
    with pytest.raises(KeyError), PoolingChoice().forward():
        raise KeyError
    assert not mode_is_active()


def pooled(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x[None, None], 2).square().sum()


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad(pooled),
        torch.func.vmap(torch.func.grad(pooled)),
        torch.func.vmap(pooled),
        torch.func.jacrev(pooled),
        torch.func.hessian(pooled),
        lambda x: torch.func.jvp(pooled, (x,), (torch.ones_like(x),)),
    ],
    ids=["grad", "vmap-grad", "vmap", "jacrev", "hessian", "jvp"],
)
def test_transforms_of_torch_func(transform: Any, request: pytest.FixtureRequest) -> None:
    x = torch.randn(*((3,) if "vmap" in request.node.name else ()), 4, 4)
    expected = transform(x)
    with FastPooling():
        torch.testing.assert_close(transform(x), expected)


def test_forward_derivatives() -> None:
    x, tangent = torch.randn(4, 4), torch.randn(4, 4)
    found = []
    for pooling in (FastPooling(), nullcontext()):
        with forward_ad.dual_level(), pooling:
            found.append(forward_ad.unpack_dual(pooled(forward_ad.make_dual(x, tangent))).tangent)
    torch.testing.assert_close(found[0], found[1])
