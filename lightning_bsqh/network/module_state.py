"""Everything that a forward may change in a module, to be put back after a trial (method §6)."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lightning_bsqh.network.comparing import alike
from lightning_bsqh.network.naming import name_of
from lightning_bsqh.network.reach import Holding, holding_of
from lightning_bsqh.network.section import Section
from lightning_bsqh.network.things import Thing

#: So many bytes may be copied before it is known whether anybody writes there.
ALLOWANCE = 64 * 2**20


class Memory:
    """Knows what a module consists of, and takes its state again and again.

    What that is, is found out once and kept for as long as the same objects hold the same others: buffers, parameters
    that are not trained, and all that attributes of submodules and of their classes, and what hangs on their forward
    hooks, lead to: containers of all kinds, objects, tensors, arrays, generators of random numbers.

    Args:
        module: The module.
        trained: Gives the parameters that are trained; None for those that require a gradient. They are no part of
            the state.
    """

    def __init__(self, module: nn.Module, trained: Callable[[], Iterable[Tensor]] | None = None) -> None:
        self.module = module
        self._trained = trained
        self._holdings: dict[int, tuple[nn.Module, Holding]] = {}
        self._lively: dict[int, Any] = {}
        self._told: set[str] = set()
        # False while it is being found out what there is, so also after an interrupt in the middle of that.
        self._is_known = False
        #: The module and all its parts, those in plain containers included.
        self.modules: list[nn.Module] = []
        size = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad and _is_made(p))
        self._sections = [Section(self._lively, max(ALLOWANCE, size)) for _ in range(2)]
        self._rebuild(set())

    def take(self) -> ModuleState:
        """The state of the module as it is now."""
        return ModuleState(self)

    def refreshed(self) -> list[Section]:
        """What to remember of all but the metrics, and of the metrics, as the module is now."""
        was_known, self._is_known = self._is_known, False
        stale = {owner for section in self._sections for owner in section.stale_owners()}
        if not was_known:
            self._rebuild(set(self._holdings))
        elif stale or self._flags() != self._known_flags:
            self._rebuild(stale)
        self._is_known = True
        return self._sections

    def enliven(self, changed: Iterable[Any]) -> None:
        """From now on these are copied; until now they were only watched."""
        fresh = [each for each in changed if id(each) not in self._lively]
        if fresh:
            self._lively.update((id(each), each) for each in fresh)
            self._rebuild(set(self._holdings))

    def not_told_before(self, changed: Iterable[Any]) -> list[str]:
        """The names of these things; each is given once only."""
        names = [name for each in changed if (name := name_of(self.module, each)) not in self._told]
        self._told.update(names)
        return names

    @property
    def has_metrics(self) -> bool:
        """Whether there are torchmetrics objects among the modules."""
        return any(map(_is_metric, self.modules))

    def with_hooks(self) -> list[nn.Module]:
        """The parts that have forward hooks."""
        return [module for module, holding in self._holdings.values() if holding.hooks]

    def __reduce__(self) -> Any:
        return Memory, (self.module, self._trained)

    # ------------------------------------------------------------------ what there is

    def _flags(self) -> tuple[list[bool], set[int] | None]:
        """Which parameters are trained."""
        trained = None if self._trained is None else set(map(id, self._trained()))
        return [p.requires_grad for p in self._parameters], trained

    def _rebuild(self, stale: set[int]) -> None:
        """Looks at the modules again that hold something else than before."""
        self._is_known = False
        holdings: dict[int, tuple[nn.Module, Holding]] = {}
        queue = deque([self.module])
        while queue:
            module = queue.popleft()
            if id(module) in holdings:
                continue
            known = self._holdings.get(id(module))
            if known is None or id(module) in stale:
                known = (module, holding_of(module, set(self._lively)))
            holdings[id(module)] = known
            queue.extend([*module.children(), *known[1].modules])
        self._holdings = holdings
        self.modules = [module for module, _ in holdings.values()]
        self._parameters = [p for module in self.modules for p in module.parameters(recurse=False)]
        self._known_flags = self._flags()
        self._fill()
        self._is_known = True

    def _fill(self) -> None:
        _, trained = self._known_flags
        frozen = {
            id(p) for p in self._parameters if not p.requires_grad or (trained is not None and id(p) not in trained)
        }
        for section in self._sections:
            section.clear()
        for module, holding in self._holdings.values():
            others = [p for p in module.parameters(recurse=False) if id(p) in frozen]
            section = self._sections[_is_metric(module)]
            section.add(id(module), holding, list(module.buffers(recurse=False)), others)
        for section in self._sections:
            section.arrange()


class ModuleState:
    """The state of a module at one time.

    Args:
        module: The module; or its :class:`Memory`, which whoever needs its state more than once keeps.
    """

    def __init__(self, module: nn.Module | Memory) -> None:
        self.memory = module if isinstance(module, Memory) else Memory(module)
        sections = self.memory.refreshed()
        #: The module and all its parts.
        self.modules = self.memory.modules
        self._parts = [section.take() for section in sections]

    def again(self) -> ModuleState:
        """The same of the same module as it is now."""
        return self.memory.take()

    @property
    def with_hooks(self) -> list[nn.Module]:
        """The parts that have forward hooks."""
        return self.memory.with_hooks()

    def restore(self, now: ModuleState | None = None) -> None:
        """Puts everything back.

        Args:
            now: The state at the moment, if that is known; saves time.
        """
        for i, part in enumerate(self._parts):
            part.restore(None if now is None else now._parts[i])

    def restore_unless(self, keep: Tensor) -> None:
        """Puts the tensors back unless a boolean scalar of the device says otherwise; else it is too late."""
        for part in self._parts:
            part.restore_unless(keep)

    def __reduce__(self) -> Any:
        # It is about these very objects: a copy of whoever holds it has none.
        return type(None), ()

    @property
    def has_metrics(self) -> bool:
        """Whether there are torchmetrics objects among the modules."""
        return self.memory.has_metrics

    def restore_metrics(self) -> None:
        """Puts back the state of torchmetrics objects only."""
        self._parts[1].restore()

    def same_as(self, other: ModuleState, metrics: bool = True) -> bool:
        """Whether the module was in the same state both times, as far as it is remembered here.

        In doubt, for instance about an object of a kind that cannot be compared, the answer is no.

        Args:
            other: The other time.
            metrics: Whether the state of torchmetrics objects counts.
        """
        pairs = list(zip(self._parts, other._parts, strict=True))
        return all(alike(mine, others) for mine, others in pairs[: 2 if metrics else 1])

    def changed(self) -> list[Any]:
        """What has changed since and is not remembered here, because nobody had been seen to write there."""
        found = [each for part in self._parts for each in part.changed()]
        return [each.target if isinstance(each, Thing) else each for each in found]


def _is_made(parameter: Tensor) -> bool:
    return not nn.parameter.is_lazy(parameter)


def _is_metric(value: object) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return False
    return isinstance(value, (torchmetrics.Metric, torchmetrics.MetricCollection))
