"""A trial leaves no trace inside the module: everything is as after one call per batch."""

import collections
import dataclasses
import logging

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_bsqh import BSQHStrategy
from tests.cases.helpers import Net, copies, documented, fit

BATCHES = 6


class Meter:
    def __init__(self):
        self.n = 0

    def update(self):
        self.n += 1


@dataclasses.dataclass
class Notebook:
    lines: list = dataclasses.field(default_factory=list)


def _order(rows):
    rows.move_to_end(next(iter(rows)))


def _add(tensor):
    with torch.no_grad():
        tensor.add_(1)


def _count(metrics):
    metrics["train"]["mean"].update(1.0)


#: What the module keeps, what training_step does to it, and how to count that.
KEPT = {
    "frozen-parameter": (lambda: nn.Parameter(torch.zeros(1), requires_grad=False), _add, float),
    "plain-tensor": (lambda: torch.zeros(1), _add, float),
    "deque": (collections.deque, lambda v: v.append(1), len),
    "defaultdict": (lambda: collections.defaultdict(list), lambda v: v["a"].append(1), lambda v: len(v["a"])),
    "dict-of-lists": (lambda: {"train": []}, lambda v: v["train"].append(1), lambda v: len(v["train"])),
    "list-of-lists": (lambda: [[], []], lambda v: v[1].append(1), lambda v: len(v[1])),
    "ordered-dict": (collections.OrderedDict, lambda v: v.update({len(v): 1}), len),
    "counter": (collections.Counter, lambda v: v.update("a"), lambda v: v["a"]),
    "numpy-array": (lambda: np.zeros(1), lambda v: np.add(v, 1, out=v), lambda v: v[0]),
    "ordered-dict-turned": (lambda: collections.OrderedDict.fromkeys(range(7)), _order, lambda v: next(iter(v))),
    "defaultdict-of-numbers": (
        lambda: collections.defaultdict(int),
        lambda v: v.update(a=v["a"] + 1),
        lambda v: v["a"],
    ),
    "dict-of-dicts": (lambda: {"a": {"b": 0}}, lambda v: v["a"].update(b=v["a"]["b"] + 1), lambda v: v["a"]["b"]),
    "dict-of-sets": (lambda: {"ids": set()}, lambda v: v["ids"].add(len(v["ids"])), lambda v: len(v["ids"])),
    "list-of-tensors": (lambda: [torch.zeros(2)], lambda v: v[0].add_(1), lambda v: float(v[0][1])),
    "array-of-numbers": (
        lambda: {"confusion": np.zeros((2, 2))},
        lambda v: np.add(v["confusion"], 1, out=v["confusion"]),
        lambda v: v["confusion"][1, 1],
    ),
    "dataclass": (Notebook, lambda v: v.lines.append(1), lambda v: len(v.lines)),
    "object-in-a-list": (lambda: [Notebook()], lambda v: v[0].lines.append(1), lambda v: len(v[0].lines)),
    "helper-object": (Meter, Meter.update, lambda v: v.n),
    "metric-in-nested-dict": (
        lambda: {"train": {"mean": torchmetrics.SumMetric()}},
        _count,
        lambda v: float(v["train"]["mean"].compute()),
    ),
}


class Keeper(Net):
    def __init__(self, make, touch):
        super().__init__()
        self.kept, self.touch = make(), touch

    def training_step(self, batch, batch_idx):
        self.touch(self.kept)
        return self.loss(batch)


@pytest.mark.parametrize("what", KEPT)
def test_contents(what):
    """What training_step counts in an attribute of the module is the number of batches."""
    make, touch, read = KEPT[what]
    module = Keeper(make, touch)
    assert fit(module, max_epochs=1).global_step == BATCHES
    assert read(module.kept) == BATCHES


def test_class_level_list():
    """A list on the class grows once per batch."""

    class Collecting(Net):
        losses = []

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.losses.append(loss.detach())
            return loss

    fit(Collecting(), max_epochs=1)
    assert len(Collecting.losses) == BATCHES


@pytest.mark.parametrize("options", [{"sweep": "gauss-seidel"}], ids=["gauss-seidel"])
def test_contents_in_other_modes(options):
    """A deque in the module holds one entry per batch in the other modes, too."""
    module = Keeper(collections.deque, lambda v: v.append(1))
    fit(module, BSQHStrategy(**options), max_epochs=2)
    assert len(module.kept) == 2 * BATCHES


def test_attribute_of_a_part():
    """What a part of the network counts in its forward is the number of batches."""

    class Part(nn.Linear):
        def __init__(self):
            super().__init__(8, 16)
            self.seen = collections.Counter()

        def forward(self, x):
            self.seen["calls"] += 1
            return super().forward(x)

    module = Net()
    module.net[0] = Part()
    fit(module, max_epochs=1)
    assert module.net[0].seen["calls"] == 6


def test_number_on_the_class():
    """A number on the class, counted in training_step, is the number of batches."""

    class Counting(Net):
        calls = 0

        def training_step(self, batch, batch_idx):
            type(self).calls += 1
            return self.loss(batch)

    fit(Counting(), max_epochs=1)
    assert Counting.calls == 6


class WithTeacher(Net):
    """Keeps beside the network a frozen one, and notes what that should be."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(8, 16).requires_grad_(False)
        self.right = copies(self.teacher.parameters())

    def student(self):
        return self.net[0].parameters()


@pytest.mark.parametrize("how", ["in-place", "data"])
def test_teacher_by_moving_average(how):
    """A teacher moved in training_step is what one move per batch gives, with the weights of that batch's start."""

    class Momentum(WithTeacher):
        def on_train_batch_start(self, batch, batch_idx):
            self.right = [r * 0.5 + p.detach() * 0.5 for r, p in zip(self.right, self.student(), strict=True)]

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                for q, p in zip(self.teacher.parameters(), self.student(), strict=True):
                    if how == "data":
                        q.data = q.data * 0.5 + p.data * 0.5
                    else:
                        q.mul_(0.5).add_(p * 0.5)
            return self.loss(batch)

    module = Momentum()
    fit(module, max_epochs=1)
    for q, right in zip(module.teacher.parameters(), module.right, strict=True):
        torch.testing.assert_close(q.detach(), right)


def test_target_network_by_load_state_dict():
    """A target network that training_step loads holds weights that the network had, not a candidate's."""

    class Target(WithTeacher):
        def on_train_batch_start(self, batch, batch_idx):
            self.right = copies(self.student())

        def training_step(self, batch, batch_idx):
            self.teacher.load_state_dict(self.net[0].state_dict())
            return self.loss(batch)

    module = Target()
    fit(module, max_epochs=1)
    for q, right in zip(module.teacher.parameters(), module.right, strict=True):
        assert torch.equal(q, right)


def test_print(capsys):
    """print in training_step is heard once per batch."""

    class Talking(Net):
        def training_step(self, batch, batch_idx):
            print("batch number", batch_idx)
            return self.loss(batch)

    fit(Talking(), max_epochs=1)
    assert capsys.readouterr().out.count("batch number") == BATCHES


def test_logging(caplog):
    """A message of the logging module in training_step is heard once per batch."""
    log = logging.getLogger("a_users_own_module")

    class Talking(Net):
        def training_step(self, batch, batch_idx):
            log.warning("batch number %d", batch_idx)
            return self.loss(batch)

    fit(Talking(), max_epochs=1)
    assert sum("batch number" in record.message for record in caplog.records) == BATCHES


def test_forward_hook():
    """A forward hook that records activations fires once per batch, or the documentation speaks of forward hooks."""
    seen = []
    module = Net()
    module.net[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.detach().mean()))
    fit(module, max_epochs=1)
    assert len(seen) == BATCHES or documented("forward hook")
