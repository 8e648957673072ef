"""Copies, and modules out of the ordinary: they work, or are refused by name."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_bsqh import BSQHOptimizer
from tests.cases.helpers import Net, fit, loader, noted, points, trainer, works_or_names


@pytest.mark.parametrize("options", [{}, {"batch_mode": "full", "max_iterations": 9}], ids=["mini", "full"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_optimizer(how, options):
    """A copy of network and optimizer goes on, or the copying is refused."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = points(16)
    optimizer = BSQHOptimizer(net, total_steps=9, **options)
    optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    try:
        other, again = how((net, optimizer))
    except (TypeError, RuntimeError, ValueError) as error:
        assert "BSQHOptimizer" in str(error)
        return
    before = other[0].weight.detach().clone()
    try:
        again.step(lambda: nn.functional.cross_entropy(other(x), y))
    except AttributeError as error:
        pytest.fail(f"a copy that does not work: {error}")
    assert again.iterations == 2
    assert not torch.equal(other[0].weight, before)


class Pickling(Net):
    """Pickled by name, so not inside the test."""

    def on_train_epoch_end(self):
        try:
            self.size = len(pickle.dumps(self.trainer))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.size = str(error)


@pytest.mark.parametrize("strategy", ["auto", None], ids=["adam", "bsqh"])
def test_trainer_while_fitting(strategy):
    """A Trainer with a progress bar can be pickled in the middle of a training."""
    module = Pickling()
    fit(module, strategy, max_epochs=1, enable_progress_bar=True)
    assert isinstance(module.size, int), module.size


def test_torchscript_part():
    """A part that is TorchScript trains, or is named in the refusal."""
    module = Net()
    module.net = torch.jit.script(module.net)
    works_or_names(lambda: fit(module, max_epochs=1), "net")


def test_lazy_layers():
    """Layers whose shapes are not known yet are trained, or the error says which they are."""

    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))

    works_or_names(lambda: fit(Lazy(), max_epochs=1), "net.0")


class Observer(nn.Module):
    """Its buffer takes its shape in the first forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.tensor([]))

    def forward(self, x):
        values = x.detach().amin(0)
        self.low.resize_(values.shape).copy_(values)
        return x


def test_buffer_that_grows():
    """A buffer that is resized in the first forward does not end the training."""
    module = Net()
    module.net.insert(0, Observer())
    try:
        made = fit(module, max_epochs=1)
    except RuntimeError as error:
        pytest.fail(f"does not train: {error}")
    assert made.global_step == 6
    assert module.net[0].low.shape == (8,)


def test_quantisation_aware_training():
    """So does a network with the observers of quantization-aware training, whose buffers grow."""
    import torch.ao.quantization as quantization

    module = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        module.net.train()
        quantization.prepare_qat(module.net, inplace=True)
    try:
        made = fit(module, max_epochs=1)
    except RuntimeError as error:
        pytest.fail(f"does not train: {error}")
    assert made.global_step == 6


def test_nothing_to_regularise():
    """A network whose parameters all have one dimension is told that nothing is regularized."""

    class Scales(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LayerNorm(8), nn.Flatten())

        def loss(self, batch):
            return nn.functional.cross_entropy(self(batch[0])[:, :3], batch[1])

    with noted() as texts:
        trainer(max_epochs=1).fit(Scales(), loader())
    assert any("regulari" in text.lower() or "zero" in text.lower() for text in texts), texts


def test_nothing_to_regularise_without_lightning():
    """The optimizer says so, too."""
    net, (x, y) = nn.Sequential(nn.BatchNorm1d(8), nn.PReLU(8)), points(16)
    with noted() as texts:
        optimizer = BSQHOptimizer(net, total_steps=9)
        optimizer.step(lambda: nn.functional.cross_entropy(net(x)[:, :3], y))
    assert any("regulari" in text.lower() or "zero" in text.lower() for text in texts), texts
