"""A trial sees the batch that the forward sweep saw."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsqh import L0, BSQHStrategy
from tests.cases.helpers import Net, fit, rejecting

ROWS = [(torch.randn(8, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(16)]


class Graph:
    """A batch of a class of its own."""

    def __init__(self, rows):
        self.x, self.y = torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])

    def to(self, device):
        return self


def arrays(rows):
    return {"x": torch.stack([x for x, _ in rows]).numpy(), "y": torch.tensor([y for _, y in rows])}


class Bag:
    """Holds its tensors in a dict of its own, without a method to move them."""

    def __init__(self, rows):
        self.store = dict(
            zip("xy", [torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])], strict=True)
        )


class Slots:
    """Has no dict of its own."""

    __slots__ = ("x", "y")

    def __init__(self, rows):
        self.x, self.y = torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])


def sums_by_batch(step, collate):
    """What each sweep of a batch saw."""
    seen = {}

    class Looking(Net):
        def training_step(self, batch, batch_idx):
            x, y = step(batch)
            seen.setdefault(batch_idx, []).append(float(x.abs().sum()))
            return self.loss((x, y))

    fit(Looking(), rejecting(), DataLoader(ROWS, 8, collate_fn=collate), max_epochs=1)
    assert max(map(len, seen.values())) > 1
    return seen


def test_object_whose_field_is_set():
    """An object whose field training_step sets anew comes to a trial as it came to the forward sweep."""

    def step(batch):
        batch.x = 2 * batch.x
        return batch.x, batch.y

    seen = sums_by_batch(step, Graph)
    assert all(len(set(values)) == 1 for values in seen.values()), seen


def halve_slots(batch):
    batch.x = batch.x * 0.5
    return batch.x, batch.y


def halve_bag(batch):
    batch.store["x"].mul_(0.5)
    return batch.store["x"], batch.store["y"]


def halve_list(batch):
    batch[0][0] *= 0.5
    return torch.from_numpy(batch[0][0].copy()), batch[1]


@pytest.mark.parametrize(
    ("collate", "step"),
    [
        (Slots, halve_slots),
        (Bag, halve_bag),
        (lambda rows: [[arrays(rows)["x"]], arrays(rows)["y"]], halve_list),
    ],
    ids=["object-with-slots", "object-with-a-dict", "array-in-a-list"],
)
def test_other_containers(collate, step):
    """So does what is in objects with slots, in an object's dict, and in arrays inside lists."""
    seen = sums_by_batch(step, collate)
    assert all(len(set(values)) == 1 for values in seen.values()), seen


def test_dict_of_arrays():
    """NumPy arrays that training_step writes into come to a trial as they came to the forward sweep."""

    def step(batch):
        np.multiply(batch["x"], 2, out=batch["x"])
        return torch.from_numpy(batch["x"].copy()), batch["y"]

    seen = sums_by_batch(step, arrays)
    assert all(len(set(values)) == 1 for values in seen.values()), seen


def test_object_taken_apart():
    """An object that loses a field in training_step has it again in a trial."""

    whole = []

    class Taking(Net):
        def training_step(self, batch, batch_idx):
            whole.append(hasattr(batch, "y"))
            y = batch.__dict__.pop("y", torch.zeros(8).long())
            return self.loss((batch.x, y))

    data = DataLoader(ROWS, 8, collate_fn=Graph)
    assert fit(Taking(), BSQHStrategy(L0(rho=0.0)), data, max_epochs=1).global_step == 2
    assert all(whole), whole
