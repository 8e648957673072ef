"""One class for one device and many: what the Trainer hands over decides which strategy of Lightning's it is."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import RandomSampler

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.strategy.process_options import ProcessOptions
from tests.strategy.small_modules import SmallModule


class Mine(BSQHStrategy):
    """A user's own."""

    def __init__(self, mine: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.mine = mine


@pytest.mark.parametrize("strategy", [BSQHStrategy, Mine, lambda: "bsqh"], ids=["instance", "subclass", "string"])
@pytest.mark.parametrize(("options", "processes"), [({"devices": 2}, 2), ({"num_nodes": 3}, 3), ({"devices": 1}, 1)])
def test_is_a_ddp_strategy_with_several_only(
    make_trainer: Any, strategy: Any, options: dict[str, int], processes: int
) -> None:
    found = make_trainer(strategy(), **options).strategy
    assert isinstance(found, BSQHStrategy)
    assert isinstance(found, DDPStrategy) == (processes > 1)
    assert found.world_size == processes
    assert type(found).__name__ == ("Mine" if strategy is Mine else "BSQHStrategy")
    assert found.num_nodes == options.get("num_nodes", 1)


def test_with_one_there_is_no_process_group(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    trainer = make_trainer(BSQHStrategy())
    trainer.fit(module, make_loader(shuffle=True))
    assert not dist.is_initialized()
    assert trainer.model is module
    # Lightning's sampler for several would shuffle by a seed of its own.
    assert type(trainer.train_dataloader.sampler) is RandomSampler


@pytest.mark.parametrize("kind", [BSQHStrategy, Mine])
def test_can_be_sent_to_another_process(make_trainer: Any, kind: type) -> None:
    strategy = make_trainer(kind(eta=0.5, start_method="spawn"), devices=2).strategy
    copy = pickle.loads(pickle.dumps(strategy))
    assert type(copy) is type(strategy)
    assert copy.num_processes == 2
    assert copy._options.eta == 0.5
    assert vars(copy).get("mine") == vars(strategy).get("mine")


def test_hands_the_options_to_ddp() -> None:
    options = ProcessOptions(
        find_unused_parameters=True,
        static_graph=True,
        process_group_backend="gloo",
        timeout=timedelta(seconds=5),
        start_method="spawn",
    )
    assert options.for_ddp_strategy() == {
        "find_unused_parameters": True,
        "static_graph": True,
        "broadcast_buffers": False,
        "process_group_backend": "gloo",
        "timeout": timedelta(seconds=5),
        "start_method": "spawn",
    }
    DDPStrategy(**options.for_ddp_strategy())


def test_the_trainer_finds_the_options(make_trainer: Any) -> None:
    strategy = BSQHStrategy(timeout=timedelta(seconds=5), process_group_backend="gloo", start_method="spawn")
    found: Any = make_trainer(strategy, devices=2).strategy
    assert found.process_group_backend == "gloo"
    assert found._timeout == timedelta(seconds=5)
    assert type(found.launcher).__name__ == "_MultiProcessingLauncher"
    assert found.launcher._start_method == "spawn"


def test_processes_are_started_as_a_notebook_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ProcessOptions().for_ddp_strategy()["start_method"] == "popen"
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    assert ProcessOptions().for_ddp_strategy()["start_method"] == "fork"


def test_samples_of_a_batch() -> None:
    assert ProcessOptions().samples({"x": torch.zeros(3, 2)}) == 3
    assert ProcessOptions().samples("no tensor") == 1
    assert ProcessOptions(weigh_batch=lambda batch: 7).samples(None) == 7
    with pytest.raises(ValueError, match=r"weigh_batch must return the number of samples.*at least 1, got 0"):
        ProcessOptions(weigh_batch=lambda batch: 0).samples(None)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"find_unused_parameters": 1}, TypeError),
        ({"static_graph": "yes"}, TypeError),
        ({"broadcast_buffers": None}, TypeError),
        ({"process_group_backend": 3}, TypeError),
        ({"timeout": 30}, TypeError),
        ({"start_method": "thread"}, ValueError),
        ({"weigh_batch": 3}, TypeError),
    ],
)
def test_options_that_are_wrong(option: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(option))):
        BSQHStrategy(**option)
