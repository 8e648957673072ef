"""The state of generators and modules, taken and put back (method §6)."""

from __future__ import annotations

import io
import random
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.module_state import ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.tree import same
from lightning_bsqh.network.without_trace import without_trace


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), *torch.randn(3).tolist()]


def test_the_same_numbers_come_again() -> None:
    # An odd number of normal draws leaves a spare one in the generators of Python and NumPy.
    draw()
    state = RandomState.capture()
    first = draw()
    state.restore()
    assert draw() == first
    state.restore()
    assert draw() == first


def test_through_a_file_that_holds_plain_types_only() -> None:
    draw()
    state = RandomState.capture()
    first = draw()
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    RandomState.from_state_dict(torch.load(file, weights_only=True)).restore()
    assert draw() == first


def test_a_state_without_numpy_leaves_numpy_alone() -> None:
    saved = RandomState.capture().state_dict()
    del saved["numpy"]
    np.random.seed(4)
    expected = np.random.rand()
    np.random.seed(4)
    RandomState.from_state_dict(saved).restore()
    assert np.random.rand() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_generator_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    state = RandomState.from_state_dict(RandomState.capture([device]).state_dict())
    first = torch.rand(3, device=device)
    state.restore()
    assert torch.equal(torch.rand(3, device=device), first)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.ones(3))
        self.child = nn.Module()
        self.child.calls = 0
        self.register_buffer("queue", torch.zeros(4))
        self.register_buffer("view", torch.zeros(1).expand(4))
        self.register_buffer("empty", None)
        self.number, self.text, self.nothing = 0, "a", None
        self.items: list[Any] = [1, torch.ones(2)]
        self.table: dict[str, Any] = {"a": torch.ones(2), "b": 2}
        self.names = {"a"}
        self.generators = torch.Generator(), np.random.default_rng(0), Random(0)
        self.torch_generator, self.numpy_generator, self.python_generator = self.generators
        self.mean = torchmetrics.MeanMetric()
        self.cat = torchmetrics.CatMetric()
        self.collection = torchmetrics.MetricCollection({"m": torchmetrics.MeanMetric()})
        self.listed = [torchmetrics.MeanMetric()]
        self.in_tuple = (torchmetrics.MeanMetric(),)
        self.by_name = {"x": torchmetrics.MetricCollection({"m": torchmetrics.MeanMetric()})}

    def metrics(self) -> list[torchmetrics.Metric]:
        inner = self.by_name["x"]["m"]
        return [self.mean, self.cat, self.collection["m"], self.listed[0], self.in_tuple[0], inner]

    def change(self) -> None:
        """What a forward may do."""
        self.norm(torch.randn(5, 3))
        self.child.calls += 1
        self.queue[0] = 7.0
        self.queue = self.queue + 1
        self.number, self.text, self.nothing, self.new = 1, "b", torch.ones(1), object()
        self.items.append(3)
        self.items[0] = 0
        self.table["a"] = torch.zeros(2)
        self.table["c"] = 3
        self.names.add("b")
        self.draw()
        for metric in self.metrics():
            metric.update(torch.ones(2))

    def draw(self) -> list[float]:
        torch_generator, numpy_generator, python_generator = self.generators
        drawn = float(torch.rand((), generator=torch_generator)), float(numpy_generator.random())
        return [*drawn, python_generator.random()]

    def seen(self) -> dict[str, Any]:
        """All of it as comparable values."""
        return {
            "buffers": {name: value.tolist() for name, value in self.named_buffers()},
            "plain": (self.child.calls, self.number, self.text, self.nothing, hasattr(self, "new")),
            "containers": (self.items[0], len(self.items), list(self.table), self.table["a"].tolist(), set(self.names)),
            "metrics": [
                (m._update_count, [v.tolist() if isinstance(v, Tensor) else list(v) for v in m.metric_state.values()])
                for m in self.metrics()
            ],
        }


def test_everything_a_forward_may_change_is_put_back() -> None:
    module = Everything()
    module.change()
    before, objects = module.seen(), dict(vars(module))
    state = ModuleState(module)
    for _ in range(2):
        module.change()
        assert module.seen() != before
        state.restore()
        assert module.seen() == before
        assert vars(module).keys() == objects.keys()
        assert all(vars(module)[name] is value for name, value in objects.items())


def test_generators_of_the_module_draw_the_same_again() -> None:
    module = Everything()
    state = ModuleState(module)
    first = module.draw()
    state.restore()
    assert module.draw() == first


def test_a_deleted_attribute_comes_back() -> None:
    module = Everything()
    state = ModuleState(module)
    del module.text, module.table["b"]
    module.items.clear()
    state.restore()
    assert module.text == "a"
    assert module.table["b"] == 2
    assert len(module.items) == 2


def test_parameters_are_left_as_they_are() -> None:
    module = Everything()
    state = ModuleState(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
    state.restore()
    assert module.weight.tolist() == [3.0] * 3


def test_without_trace_starts_where_the_forward_started() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counter = 0

        @override
        def forward(self) -> tuple[int, float]:
            self.counter += 1
            return self.counter, float(torch.rand(()))

    module = Drawing()
    start, before = RandomState.capture(), ModuleState(module)
    forward = module()
    after = torch.get_rng_state()
    for _ in range(2):
        with without_trace(module, start, before, []):
            assert module() == forward
        assert module.counter == 1
        assert torch.equal(torch.get_rng_state(), after)


def test_without_trace_puts_back_after_an_exception() -> None:
    module = Everything()
    start, before, after = RandomState.capture(), module.seen(), torch.get_rng_state()

    def fail() -> None:
        module.change()
        raise KeyError

    with pytest.raises(KeyError), without_trace(module, start, None, []):
        fail()
    assert module.seen() == before
    assert torch.equal(torch.get_rng_state(), after)


def test_without_trace_of_an_unknown_module_keeps_the_generators() -> None:
    start = RandomState.capture()
    first = draw()
    after = torch.get_rng_state()
    with without_trace(None, start, None, []):
        assert draw() == first
    assert torch.equal(torch.get_rng_state(), after)


# ---------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("generator", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_generators_tell_whether_anything_was_drawn(generator: Any) -> None:
    state = RandomState.capture()
    assert state.same_as(RandomState.capture())
    generator()
    assert not state.same_as(RandomState.capture())


def test_same() -> None:
    x = torch.arange(3.0)
    thing = object()
    nest = {"a": [x, 1, "b"], "c": (None, {2}, thing), "d": torch.device("cpu")}
    assert same(nest, {"a": [x.clone(), 1, "b"], "c": (None, {2}, thing), "d": torch.device("cpu")})
    for other in (
        {**nest, "a": [x + 1, 1, "b"]},
        {**nest, "a": [x.double(), 1, "b"]},
        {**nest, "a": [x[:2], 1, "b"]},
        {**nest, "a": (x, 1, "b")},
        {**nest, "a": [x, 1.0, "b"]},
        {**nest, "c": (None, {2}, object())},
        {**nest, "d": None},
        {"a": nest["a"]},
    ):
        assert not same(nest, other)
    assert not same(torch.tensor(float("nan")), torch.tensor(float("nan"))), "in doubt no"


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.mean = torchmetrics.MeanMetric()
        self.count = 0
        self.history: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.norm(torch.randn(4, 2)),
        lambda m: setattr(m, "count", 1),
        lambda m: setattr(m, "new", 1),
        lambda m: m.history.append(torch.zeros(1)),
        lambda m: torch.rand(1, generator=m.generator),
        lambda m: m.eval(),
        lambda m: m.mean.update(torch.ones(1)),
    ],
)
def test_module_states_tell_whether_anything_has_changed(change: Any) -> None:
    module = Stateful()
    state = ModuleState(module)
    assert state.same_as(state.again())
    assert state.same_as(ModuleState(module))
    change(module)
    assert not state.same_as(state.again())
    after = state.again()
    state.restore()
    assert state.same_as(ModuleState(module))
    assert not after.same_as(ModuleState(module)), "what a state holds is its own"
    after.restore()
    assert after.same_as(ModuleState(module))


def test_metrics_may_be_left_out() -> None:
    module = Stateful()
    state = ModuleState(module)
    assert state.has_metrics
    assert not ModuleState(nn.BatchNorm1d(2)).has_metrics
    module.mean.update(torch.ones(1))
    counted = state.again()
    assert counted.same_as(state, metrics=False)
    module.count = 1
    assert not state.again().same_as(state, metrics=False)
    state.restore_metrics()
    assert module.count == 1
    assert module.mean._update_count == 0
    counted.restore_metrics()
    assert module.mean.compute() == 1.0


def test_metrics_that_were_reset_are_the_same() -> None:
    module = Stateful()
    state = ModuleState(module)
    module.mean(torch.ones(1))
    module.mean.reset()
    assert state.same_as(state.again())
