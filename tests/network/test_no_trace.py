"""A trial leaves no trace: with nests, modules and batches made at random (method §6)."""

from __future__ import annotations

import copy
import logging
import pickle
import queue
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_bsqh.network.batch_state import BatchState
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.without_trace import without_trace
from tests.network.made_things import change, nests, picture


class Holder(nn.Module):
    """Holds a nest, and other parts that hold some."""

    def __init__(self, kept: Any, parts: list[Any] | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.parts = nn.ModuleList([Holder(part) for part in parts or []])

    def seen(self) -> Any:
        return picture(self.kept), [part.seen() for part in self.parts]

    def change(self, source: random.Random) -> None:
        self.kept = change(self.kept, source)
        for part in self.parts:
            part.change(source)


@settings(deadline=None, max_examples=150)
@given(kept=nests, parts=st.lists(nests, max_size=2), seed=st.integers(0, 1000))
def test_what_a_module_holds_is_put_back(kept: Any, parts: list[Any], seed: int) -> None:
    module = Holder(kept, parts)
    before = module.seen()
    state = ModuleState(module)
    for _ in range(2):
        module.change(random.Random(seed))
        state.restore()
        assert module.seen() == before
        assert module.kept is kept


@settings(deadline=None, max_examples=100)
@given(kept=nests, parts=st.lists(nests, max_size=2), seed=st.integers(0, 1000))
def test_trials_start_where_the_forward_started_and_leave_what_it_left(kept: Any, parts: Any, seed: int) -> None:
    module = Holder(kept, parts)
    memory = Memory(module)
    for step in range(3):
        before = module.seen()
        start, state = RandomState.capture(), memory.take()
        module.change(random.Random(seed + step))
        after = module.seen()
        for trial in range(2):
            with without_trace(module, start, state, []):
                assert module.seen() == before
                module.change(random.Random(seed + step + trial))
            assert module.seen() == after


@settings(deadline=None, max_examples=100)
@given(batch=nests, seed=st.integers(0, 1000))
def test_a_batch_is_put_back(batch: Any, seed: int) -> None:
    before = picture(batch)
    state = BatchState(batch, tensors=True)
    change(batch, random.Random(seed))
    after, left = picture(batch), state.again()
    state.restore()
    assert picture(batch) == before
    left.restore()
    assert picture(batch) == after


def test_tensors_of_a_batch_that_were_written_into() -> None:
    x, y = torch.zeros(3), torch.zeros(3)
    for write in (lambda: x.add_(1), lambda: y.data.add_(1)):
        state = BatchState([{"x": x}, (y,)], tensors=True)
        assert not state.was_written_into()
        write()
        assert state.was_written_into()


# ---------------------------------------------------------------------- parts of networks


class Counter(nn.Module):
    """Counts on its class."""

    calls = 0
    seen: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.seen.append(1)
        return x


class Grows(nn.Module):
    """Its buffers take their shapes in the first forward, and one is swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.empty(0))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.low.resize_(x.shape[1:]).copy_(x.detach().amin(0))
        self.mean = self.mean + x.detach().mean()
        return x


class Teacher(nn.Module):
    """Keeps a frozen copy that follows, in one of the usual ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        with torch.no_grad():
            for q in self.teacher.parameters():
                q.mul_(0.5)
        self.how = how

    @torch.no_grad()
    def follow(self) -> None:
        for q, p in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            if self.how == "in place":
                q.mul_(0.5).add_(p, alpha=0.5)
            elif self.how == "data in place":
                q.data.mul_(0.5).add_(p.data, alpha=0.5)
            elif self.how == "data":
                q.data = 0.5 * q.data + 0.5 * p.data
        if self.how == "load":
            self.teacher.load_state_dict(self.student.state_dict())
        if self.how == "swap":
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.follow()
        return self.student(x) + self.teacher(x)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "batchnorm": lambda: nn.BatchNorm1d(4),
    "batchnorm in eval": lambda: nn.BatchNorm1d(4).eval(),
    "counter": Counter,
    "grows": Grows,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "dropout": nn.Dropout,
    "script": lambda: torch.jit.script(nn.BatchNorm1d(4)),
    **{f"teacher {how}": lambda how=how: Teacher(how) for how in ("in place", "data in place", "data", "load", "swap")},
}


def seen_of(net: nn.Module) -> Any:
    """Everything in a network that a forward may change."""
    frozen = {name: p.tolist() for name, p in net.named_parameters() if not p.requires_grad}
    buffers = {name: b.tolist() for name, b in net.named_buffers()}
    return frozen, buffers, Counter.calls, list(Counter.seen)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4), frozen=st.booleans())
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_networks(names: list[str], frozen: bool) -> None:
    """After a trial at other weights everything is as after the forward, which a trial at the same weights repeats."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4).requires_grad_(not frozen), *(PARTS[name]() for name in names))
    trained = [p for p in net.parameters() if p.requires_grad]
    memory = Memory(net, lambda: trained)
    x = torch.randn(6, 4)
    for _ in range(3):
        start, before = RandomState.capture(), memory.take()
        loss = net(x).square().mean()
        after = seen_of(net)
        with without_trace(net, start, before, []), torch.no_grad():
            again = net(x).square().mean()
        assert torch.equal(loss.detach(), again)
        assert seen_of(net) == after
        with without_trace(net, start, before, []), torch.no_grad():
            for p in trained:
                p.mul_(1.1)
            net(x)
        assert seen_of(net) == after


def test_a_graph_stays_usable_though_buffers_are_put_back() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval())
    net.register_buffer("scale", torch.full((4,), 0.5))
    before, start = ModuleState(net), RandomState.capture()
    with without_trace(net, start, before, []):
        loss = (net(torch.randn(3, 4)) * net.scale).sum()
    before.restore()
    loss.backward()


def test_trained_parameters_are_no_state_and_others_are() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    trained = list(net[0].parameters())
    state = Memory(net, lambda: trained).take()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(3.0)
    state.restore()
    assert all(bool((p == 3.0).all()) for p in net[0].parameters())
    assert not any(bool((p == 3.0).all()) for p in net[1].parameters())


def test_modules_and_metrics_deep_in_containers() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.metrics = {"train": [torchmetrics.SumMetric(), {"auroc": torchmetrics.CatMetric()}]}
            self.nets = ([nn.BatchNorm1d(2)],)

    module = Keeping()
    total, every = module.metrics["train"][0], module.metrics["train"][1]["auroc"]
    state = ModuleState(module)
    assert state.has_metrics
    for _ in range(2):
        total.update(1.0)
        every.update(torch.ones(2))
        module.nets[0][0](torch.randn(3, 2))
        state.restore()
        assert float(total.compute()) == 0.0
        assert every.value == []
        assert int(module.nets[0][0].num_batches_tracked) == 0


# ---------------------------------------------------------------------- what is large


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "dict"])
@pytest.mark.parametrize("first", [0, 2])
def test_what_is_large_is_copied_once_somebody_writes_there(kind: str, first: int) -> None:
    """From whatever iteration on somebody writes; no trial leaves a trace."""
    module = nn.Module()
    size = 9000
    module.kept = {
        "tensor": lambda: torch.zeros(size),
        "array": lambda: np.zeros(size),
        "list": lambda: [0] * size,
        "dict": lambda: dict.fromkeys(range(size), 0),
    }[kind]()

    def write() -> None:
        if isinstance(module.kept, (Tensor, np.ndarray)):
            module.kept += 1
        else:
            last = len(module.kept) - 1
            module.kept[last if isinstance(module.kept, list) else size] = last

    memory = Memory(module)
    for step in range(5):
        start, before = RandomState.capture(), memory.take()
        if step >= first:
            write()
        after = picture(module.kept)
        for _ in range(2):
            with without_trace(module, start, before, []):
                if step >= first:
                    write()
            assert picture(module.kept) == after


@pytest.mark.parametrize(
    ("kept", "write"),
    [
        (lambda: [torch.zeros(9000)], lambda kept: kept[0].add_(1)),
        (lambda: {"a": iter(range(9))}, lambda kept: next(kept["a"])),
        (lambda: [(i for i in range(9))], lambda kept: next(kept[0])),
    ],
)
def test_what_cannot_be_put_back_is_named_once(kept: Any, write: Any) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].kept = kept()
    memory = Memory(module)
    for _ in range(2):
        # Left alone at first, so that it is only watched.
        with without_trace(module, RandomState.capture(), memory.take(), []):
            pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with without_trace(module, RandomState.capture(), memory.take(), []):
                write(module[0].kept)
    texts = [str(w.message) for w in caught]
    assert len(texts) == 1
    assert "0.kept" in texts[0]
    assert "trial_loss" in texts[0]


# ---------------------------------------------------------------------- hooks


def test_what_a_forward_hook_keeps_is_put_back() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls = 0

        def note(self, *args: Any) -> None:
            self.calls += 1

    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    seen: list[Tensor] = []
    count = 0

    def counting(*args: Any) -> None:
        nonlocal count
        count += 1

    recorder = Recorder()
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net[0].register_forward_pre_hook(counting)
    net[1].register_forward_hook(recorder.note)
    before, start = ModuleState(net), RandomState.capture()
    net(torch.ones(1, 2))
    for _ in range(2):
        with without_trace(net, start, before, []):
            net(torch.ones(1, 2))
            assert (len(seen), count, recorder.calls) == (1, 1, 1)
        assert (len(seen), count, recorder.calls) == (1, 1, 1)


def test_hooks_of_trackers_rest_and_others_do_not() -> None:
    def own(*args: Any) -> None:
        _CALLS.append("own")

    def tracker(*args: Any) -> None:
        _CALLS.append("tracker")

    tracker.__module__ = "wandb.integration.torch.wandb_torch"
    net = nn.Linear(2, 2)
    net.register_forward_hook(tracker)
    net.register_forward_hook(own)
    _CALLS.clear()
    with without_trace(net, RandomState.capture(), ModuleState(net), []):
        net(torch.ones(1, 2))
    assert _CALLS == ["own"]
    net(torch.ones(1, 2))
    assert _CALLS == ["own", "tracker", "own"]


_CALLS: list[str] = []


# ---------------------------------------------------------------------- silence


def test_a_trial_is_not_heard(capsys: Any, caplog: Any) -> None:
    streams = sys.stdout, sys.stderr, logging.Logger.handle, warnings.showwarning
    start = RandomState.capture()

    def speak(word: str) -> None:
        print(word)
        sys.stderr.write(word)
        logging.getLogger("somebody").warning(word)

    def fail() -> None:
        speak("trial")
        warnings.warn("trial", stacklevel=1)
        thread = threading.Thread(target=speak, args=("other thread",))
        thread.start()
        thread.join()
        raise KeyError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyError), without_trace(None, start, None, []):
            fail()
    speak("after")
    assert (sys.stdout, sys.stderr, logging.Logger.handle, warnings.showwarning) == streams
    heard = capsys.readouterr()
    assert heard.out == "other thread\nafter\n"
    assert heard.err == "other threadafter"
    assert [record.message for record in caplog.records] == ["other thread", "after"]
    assert caught == []


# ---------------------------------------------------------------------- uncommon kinds


def _counted(self: Any) -> None:
    _counted.calls += 1  # type: ignore[attr-defined]


_counted.calls = 0  # type: ignore[attr-defined]


class Uncommon(nn.Module):
    count = _counted


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3).to_sparse(),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.bool),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        torch.zeros(1).expand(3),
        torch.zeros(3, device="meta"),
        torch.zeros(0),
        nn.parameter.UninitializedBuffer(),
    ],
    ids=["sparse", "float8", "complex", "bool", "nested", "expanded", "meta", "empty", "lazy"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kinds_of_tensors(tensor: Tensor) -> None:
    """Whatever cannot be copied is no reason to end a training."""
    module = nn.Module()
    module.register_buffer("buffer", tensor)
    module.kept = [tensor]
    memory = Memory(module)
    for _ in range(3):
        with without_trace(module, RandomState.capture(), memory.take(), []):
            pass
        BatchState([tensor], tensors=True).restore()
    alike = memory.take().same_as(memory.take())
    assert alike or tensor.layout != torch.strided or not can_be_compared(tensor)


def can_be_compared(tensor: Tensor) -> bool:
    """Whether this torch can; 2.4 cannot with eight bits."""
    if tensor.dtype != torch.float8_e4m3fn:
        return True
    try:
        return torch.equal(tensor, tensor)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return False


def test_sparse_tensors_are_put_back() -> None:
    module = nn.Module()
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    state = ModuleState(module)
    module.sparse.mul_(3.0)
    state.restore()
    assert torch.equal(module.sparse.to_dense(), torch.eye(2))


def test_uncommon_places() -> None:
    class Key:
        pass

    module, key = Uncommon(), Key()
    module.queue = queue.Queue()
    module.weak = weakref.WeakKeyDictionary({key: [0]})
    module.objects = np.array([[1], [2, 3]], dtype=object)
    module.function = _counted
    state, calls = ModuleState(module), _counted.calls  # type: ignore[attr-defined]
    for _ in range(2):
        module.queue.put(1)
        module.weak[key].append(1)
        module.objects[0].append(2)
        module.count()
        state.restore()
        assert module.queue.qsize() == 0
        assert module.weak[key] == [0]
        assert module.objects[0] == [1]
        assert _counted.calls == calls  # type: ignore[attr-defined]


def test_surroundings_that_a_module_holds_are_left_alone() -> None:
    module = nn.Linear(1, 1)
    module.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    module.logger_of_mine = logging.getLogger("mine")
    module.thread = threading.Thread(target=print)
    state = ModuleState(module)
    module.optimizer.param_groups[0]["lr"] = 0.2
    module.logger_of_mine.setLevel(logging.ERROR)
    state.restore()
    assert module.optimizer.param_groups[0]["lr"] == 0.2
    assert module.logger_of_mine.level == logging.ERROR


def test_copies_of_a_memory_are_of_the_copied_module() -> None:
    net = nn.Linear(2, 2)
    memory = Memory(net, None)
    other, again = copy.deepcopy((net, memory))
    assert again.module is other
    third, once_more = pickle.loads(pickle.dumps((net, memory)))
    assert once_more.module is third
    assert copy.deepcopy(memory.take()) is None
