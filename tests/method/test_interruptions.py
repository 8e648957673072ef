"""An interrupt at any point of a step leaves everything as it was before the step, or as it is after it."""

from __future__ import annotations

import copy
import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import lightning_bsqh
from lightning_bsqh import L0, BSQHOptimizer, Cardinality
from lightning_bsqh.method import trial_schedule
from lightning_bsqh.network.silence import is_silent
from lightning_bsqh.network.uninterrupted import uninterrupted

PACKAGE = str(Path(lightning_bsqh.__file__).parent)


class InterruptAt:
    """Sends SIGINT to this process when the n-th function of the package is entered.

    Args:
        n: Counted from 0; never, if it is larger than the number of calls.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.calls = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            self.calls += 1
            if self.calls == self.n + 1:
                signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> InterruptAt:
        sys.settrace(self)
        return self

    def __exit__(self, *args: Any) -> None:
        sys.settrace(None)


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(self.seen))
        return self.last(nn.functional.dropout(self.norm(self.first(x)).relu(), 0.3))


def state_of(net: Net, optimizer: BSQHOptimizer) -> list[Any]:
    """All that a step may change."""
    tensors = [t.clone() for t in (*net.state_dict().values(), torch.get_rng_state())]
    own = copy.deepcopy(optimizer.state_dict())
    entries = own.pop("state").values()
    memory = [entry.get(name, torch.zeros(0)) for entry in entries for name in ("mean_square", "mean", "before")]
    return [*tensors, *memory, own, list(net.seen), random.getstate()]


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(first, second, strict=True)
    )


def make(options: dict[str, Any]) -> tuple[Net, BSQHOptimizer, Callable[[], Any]]:
    """A training after two steps, or before one that is not tested, always the same, and what does the next one."""
    torch.manual_seed(0)
    random.seed(0)
    net = Net()
    options = {"regularizer": Cardinality(0.5), "total_steps": 8, **options}
    optimizer = BSQHOptimizer(net, **options)
    x, y = torch.randn(12, 4), torch.randn(12, 1)

    def step() -> Any:
        if options.get("batch_mode") == "full":
            return optimizer.step(
                lambda part: nn.functional.mse_loss(net(x[part]), y[part]), batches=[slice(0, 6), slice(6, 12)]
            )
        return optimizer.step(lambda: nn.functional.mse_loss(net(x), y))

    step()
    step()
    while optimizer.options.trial_every != 1 and optimizer._training.schedule.is_due:
        step()
    return net, optimizer, step


@pytest.fixture(autouse=True)
def calm_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_schedule, "FIRST", 0)


MODES: dict[str, dict[str, Any]] = {
    "jacobi": {},
    "first trials rejected": {"epsilon": 1e-4},
    "gauss-seidel": {"sweep": "gauss-seidel"},
    "untested": {"regularizer": L0(rho=0.0), "epsilon": 500.0, "trial_every": "auto", "total_steps": None},
    "on the device": {"decide": "device", "regularizer": L0(rho=1e-3)},
    "on the device, tightening": {"decide": "device"},
    "full batch": {"batch_mode": "full", "count_samples": lambda part: 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_moment(mode: str) -> None:
    check(mode, every=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_done_or_has_not_happened(mode: str) -> None:
    check(mode, every=False)


def check(mode: str, every: bool) -> None:
    net, optimizer, step = make(MODES[mode])
    # As below: whoever asks for the state brings it to the host, and the next step has more to do.
    state_of(net, optimizer)
    with InterruptAt(10**9) as counter:
        step()
    after = state_of(net, optimizer)
    # The last ones come when the step has been put in place.
    apart = 1 if every else max(1, counter.calls // 30)
    moments = sorted({*range(0, counter.calls, apart), *range(counter.calls - 4, counter.calls)})
    outcomes = set()
    for n in moments:
        net, optimizer, step = make(MODES[mode])
        before = state_of(net, optimizer)
        stdout, handle = sys.stdout, logging.Logger.handle
        interrupted = False
        try:
            with InterruptAt(n):
                step()
        except KeyboardInterrupt:
            interrupted = True
        found = state_of(net, optimizer)
        outcomes.add(same(found, after))
        # Python itself swallows what is raised while a generator is closed.
        assert same(found, after) or (interrupted and same(found, before)), n
        assert not is_silent()
        assert (sys.stdout, logging.Logger.handle) == (stdout, handle), n
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        # And the training goes on.
        if not same(found, after):
            step()
        assert same(state_of(net, optimizer), after), n
    assert outcomes == {True, False}


def test_an_interrupt_waits() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_ignores_interrupts_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
