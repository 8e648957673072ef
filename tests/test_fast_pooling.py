"""The quick pooling of trials against torch's own."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lightning_bsqh import fast_pooling
from lightning_bsqh.fast_pooling import FastPooling, tiled_max_pool2d


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


def test_not_used_where_a_graph_is_needed() -> None:
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with patch.object(fast_pooling, "tiled_max_pool2d", wraps=tiled_max_pool2d) as spy, FastPooling():
        functional.max_pool2d(images, 2).sum().backward()
    assert not spy.called
    assert images.grad is not None


def test_modules_and_compiled_modules() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2), torch.nn.ReLU())
    images = torch.randn(2, 1, 10, 10)
    expected = network(images)
    with torch.no_grad(), FastPooling():
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(torch.compile(network, backend="eager")(images), expected)
