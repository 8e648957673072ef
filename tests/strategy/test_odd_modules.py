"""Modules out of the ordinary train, or are refused by name."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_bsqh import BSQHOptimizer, BSQHStrategy, Cardinality
from lightning_bsqh.network.layers import find_layers
from tests.strategy.small_modules import SmallModule, weights_of


class Lazy(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.LazyConv1d(3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
        )


@pytest.mark.parametrize("options", [{}, {"batch_mode": "full"}, {"sweep": "gauss-seidel"}])
@pytest.mark.parametrize("summary", [True, False])
def test_lazy_layers_train(make_trainer: Any, make_loader: Any, options: dict[str, Any], summary: bool) -> None:
    strategy = BSQHStrategy(Cardinality(0.5), **options)
    trainer = make_trainer(strategy, max_epochs=6, enable_model_summary=summary)
    module = Lazy()
    trainer.fit(module, make_loader())
    assert module.net[4].weight.shape == (1, 6)
    assert set(trainer.optimizers[0].regularized_weights()) == {"net.1", "net.4"}
    assert trainer.optimizers[0].sparsity() == pytest.approx(0.5, abs=0.05)


def test_lazy_normalizations_are_no_weights() -> None:
    network = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyInstanceNorm2d(affine=True))
    assert [sorted(layer.regularized) for layer in find_layers(network)] == [["0.weight"], [], []]


def test_a_lazy_module_of_ones_own_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.parameter.UninitializedParameter()

    with pytest.raises(TypeError, match=r"params: 0\.mixing has no shape yet.* run one batch through the network"):
        find_layers(nn.Sequential(Own()))


@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_a_torchscript_part_trains(make_trainer: Any, make_loader: Any, sweep: str) -> None:
    module = SmallModule()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm([8]), nn.ReLU()))
    module.net = nn.Sequential(scripted, nn.Linear(8, 1))
    before = weights_of(module)
    trainer = make_trainer(BSQHStrategy(Cardinality(0.5), sweep=sweep), max_epochs=6)
    trainer.fit(module, make_loader())
    assert trainer.optimizers[0].sparsity() == 0.5
    assert not torch.equal(before["net.0.0.weight"], weights_of(module)["net.0.0.weight"])


def test_complex_parameters_get_a_way_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"0\.weight has dtype torch\.complex64.*view_as_real.*requires_grad_\(False\)"):
        BSQHOptimizer(network)


class OnFrozenBackbone(nn.Module):
    """As a pretrained network that is kept in less memory, with a head of its own."""

    def __init__(self, frozen: torch.dtype) -> None:
        super().__init__()
        values = torch.linspace(-1.0, 1.0, 32).view(8, 4)
        values = (values * 100).to(frozen) if not frozen.is_floating_point else values.to(frozen)
        self.backbone = nn.Parameter(values, requires_grad=False)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.backbone.real if self.backbone.is_complex() else self.backbone
        return self.head(nn.functional.linear(x, weight.float() / 100).relu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.complex64])
def test_a_frozen_backbone_may_have_any_dtype(dtype: torch.dtype) -> None:
    network = OnFrozenBackbone(dtype)
    before = network.backbone.clone()
    optimizer = BSQHOptimizer(network, total_steps=20)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    for _ in range(20):
        optimizer.step(lambda: nn.functional.mse_loss(network(x), y))
    assert optimizer.accepted > 10
    assert torch.equal(network.backbone, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backbone_in_half_precision_is_refused_when_it_is_unfrozen(dtype: torch.dtype) -> None:
    network = OnFrozenBackbone(dtype)
    optimizer = BSQHOptimizer(network, total_steps=20)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    optimizer.step(lambda: nn.functional.mse_loss(network(x), y))
    network.backbone.requires_grad_()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    with pytest.raises(TypeError, match=r"params: backbone has dtype torch\..*float16.*autocast"):
        optimizer.step(lambda: nn.functional.mse_loss(network(x), y))
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())


class Scales(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(4), nn.PReLU(4))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]).sum(1, keepdim=True), batch[1])


def test_nothing_to_regularise_is_said(make_trainer: Any, make_loader: Any) -> None:
    with pytest.warns(UserWarning, match=r"Nothing will be regularized.*net\.0\.weight.*regularize=\[\.\.\.\]"):
        make_trainer(BSQHStrategy()).fit(Scales(), make_loader())
    with pytest.warns(UserWarning, match="Nothing will be regularized"):
        BSQHOptimizer(Scales().net)


@pytest.mark.parametrize("options", [{"regularize": []}, {"regularize": ["0.weight"]}])
def test_a_choice_of_nothing_is_no_news(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BSQHOptimizer(nn.Sequential(nn.Linear(2, 2)), **options)
