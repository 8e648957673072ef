"""What a module holds: everything that can be reached from it, up to other modules (method §6)."""

from __future__ import annotations

import array
import dataclasses
import enum
import io
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Generator, Tensor, nn

from lightning_bsqh.network import things
from lightning_bsqh.network.things import Thing

#: What holds nothing that could change.
ATOMS: frozenset[type] = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, range, slice, types.FunctionType, types.ModuleType}
    | {types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType, types.GetSetDescriptorType}
    | {types.MemberDescriptorType, types.WrapperDescriptorType, property, classmethod, staticmethod}
)
#: A container with more in it is watched by its length and its ends, and what stands in it is not looked into.
MANY = 4096
#: So many objects of one module are looked at.
AT_MOST = 20_000

#: Libraries whose objects are no state of the user's, except for those that are taken care of by their kind.
_LIBRARIES = frozenset(
    {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "lightning_bsqh", "torch"}
    | {"torchvision", "numpy", "wandb", "tensorboard", "mlflow", "rich", "tqdm"}
    | {"_pytest", "pytest", "hypothesis", "pluggy"}
)
_STANDARD = sys.stdlib_module_names - {"__main__"}
#: Of Python's own classes those that somebody keeps things in.
_OPEN = frozenset({"collections", "types", "argparse", "queue"})
#: Kinds that a user derives classes from which are no state of the network, wherever those are defined.
_SURROUNDINGS = frozenset({"Trainer", "Strategy", "Logger", "Optimizer", "LightningDataModule", "DataLoader"})


@dataclasses.dataclass
class Holding:
    """What one module holds.

    Attributes:
        things: Everything with contents; what is in them is put back.
        hooks: The module's dicts of hooks; looked at, as hooks may hold something, but not put back.
        empty: Those of its own dicts that have nothing in them.
        hookless: Its dicts of hooks that have nothing in them.
        values: Arrays, generators of random numbers and other things that are put back as one.
        tensors: Tensors that are neither parameters nor buffers.
        bulky: Containers with so much in them that they are only watched.
        iterators: What can be moved on but not back.
        modules: Other modules that are held where torch does not look for them.
        is_whole: False if there was too much to look at all of it.
    """

    things: list[Thing] = dataclasses.field(default_factory=list)
    hooks: list[Thing] = dataclasses.field(default_factory=list)
    empty: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    hookless: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)
    tensors: list[Tensor] = dataclasses.field(default_factory=list)
    bulky: list[Thing] = dataclasses.field(default_factory=list)
    iterators: list[Any] = dataclasses.field(default_factory=list)
    modules: list[nn.Module] = dataclasses.field(default_factory=list)
    is_whole: bool = True


def holding_of(module: nn.Module, lively: set[int]) -> Holding:
    """What a module holds, submodules left out.

    Args:
        module: The module.
        lively: Containers that are looked at in full though they are bulky, by identity.
    """
    found = _Search(lively)
    space = vars(module)
    found.holding.things.append(things.thing_of_dict(space))
    found.known |= {id(space), id(module)}
    for name in ("_parameters", "_buffers", "_modules"):
        inner = space.get(name)
        if isinstance(inner, dict) and inner:
            # Their tensors and modules are found by torch's own ways.
            found.holding.things.append(things.thing_of_dict(inner))
        elif isinstance(inner, dict):
            found.holding.empty.append(inner)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        inner = space.get(name)
        if isinstance(inner, dict) and not inner:
            found.holding.hookless.append(inner)
        elif isinstance(inner, dict):
            found.holding.hooks.append(things.thing_of_dict(inner))
            found.queue.extend(_Hook(hook) for hook in inner.values())
    found.visit_class(type(module))
    found.queue.extend(value for name, value in space.items() if name not in BOOKKEEPING)
    found.run()
    return found.holding


def holding_of_value(value: Any) -> Holding:
    """What can be reached from an object that is no module, such as a batch."""
    found = _Search(set())
    found.queue.append(value)
    found.run()
    return found.holding


#: What a bare module keeps for itself and no forward assigns to.
BOOKKEEPING = frozenset(vars(nn.Module()))


@dataclasses.dataclass
class _Hook:
    """Somebody's forward hook, of which only what it holds counts."""

    call: Any


class _Search:
    """Goes through objects level by level, each once."""

    def __init__(self, lively: set[int]) -> None:
        self.holding = Holding()
        self.queue: deque[Any] = deque()
        self.known: set[int] = set()
        self._lively = lively
        self._passed: list[Any] = []

    def run(self) -> None:
        while self.queue:
            value = self.queue.popleft()
            kind = type(value)
            if kind in ATOMS or id(value) in self.known:
                continue
            if len(self.known) > AT_MOST:
                self.holding.is_whole = False
                return
            self.known.add(id(value))
            # Kept until the end, so that no identity is given out twice.
            self._passed.append(value)
            role = _role_of(kind)
            if role is not None:
                role(self, value)

    def visit_class(self, kind: type) -> None:
        """The attributes of a user's own class and of those that it comes from."""
        for base in kind.__mro__:
            if id(base) not in self.known and _is_users_own(base):
                self.known.add(id(base))
                self._passed.append(base)
                self._add(things.thing_of_class(base))
                self.queue.extend(v for v in vars(base).values() if type(v) not in ATOMS)

    def _add(self, thing: Thing) -> None:
        self.holding.things.append(thing)

    # One method for each role.

    def container(self, make: Callable[[Any], Thing], value: Any) -> None:
        thing = make(value)
        if len(value) > MANY:
            if id(value) in self._lively:
                self._add(thing)
            else:
                self.holding.bulky.append(thing)
            return
        self._add(thing)
        self.queue.extend(thing.values())
        self.attributes(value)

    def passed_through(self, value: Any) -> None:
        if len(value) <= MANY:
            self.queue.extend(value)
        self.attributes(value)

    def tensor(self, value: Tensor) -> None:
        self.holding.tensors.append(value)

    def module(self, value: nn.Module) -> None:
        self.holding.modules.append(value)

    def value(self, value: Any) -> None:
        self.holding.values.append(value)

    def iterator(self, value: Any) -> None:
        self.holding.iterators.append(value)

    def attributes(self, value: Any) -> None:
        space = getattr(value, "__dict__", None)
        if isinstance(space, dict) and id(space) not in self.known:
            self.known.add(id(space))
            self._add(things.thing_of_dict(space))
            self.queue.extend(space.values())
        slots = _slots_of(type(value))
        if slots:
            thing = things.thing_of_slots(value, slots)
            self._add(thing)
            self.queue.extend(thing.values())

    def object(self, value: Any) -> None:
        self.visit_class(type(value))
        self.attributes(value)

    def hook(self, value: _Hook) -> None:
        call = value.call
        while isinstance(call, partial):
            self.queue.extend([*call.args, *call.keywords.values()])
            call = call.func
        if isinstance(call, types.MethodType):
            self.queue.append(call.__self__)
        elif isinstance(call, types.FunctionType):
            cells = call.__closure__
            if cells and _package(call.__module__) not in _LIBRARIES:
                thing = things.thing_of_cells(call, cells)
                self._add(thing)
                self.queue.extend(thing.values())
        else:
            self.queue.append(call)


Role = Callable[[_Search, Any], None]
_ROLES: dict[type, Role | None] = {_Hook: _Search.hook}
_SLOTS: dict[type, list[str]] = {}


def _role_of(kind: type) -> Role | None:
    if kind not in _ROLES:
        _ROLES[kind] = _find_role(kind)
    return _ROLES[kind]


def _find_role(kind: type) -> Role | None:
    for base, role in (*_BY_KIND, *_numpy_kinds()):
        if issubclass(kind, base):
            return role
    if _is_foreign(kind):
        is_iterator = hasattr(kind, "__next__") and hasattr(kind, "__iter__")
        return _Search.iterator if is_iterator else None
    return _Search.object


def _numpy_kinds() -> Iterator[tuple[type, Role]]:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        random_kinds = (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
        for kind in (numpy.ndarray, *random_kinds):
            yield kind, _Search.value


def _container(make: Callable[[Any], Thing]) -> Role:
    return lambda search, value: search.container(make, value)


_BY_KIND: list[tuple[type, Role | None]] = [
    (enum.Enum, None),
    (type, None),
    (Tensor, _Search.tensor),
    (nn.Module, _Search.module),
    (dict, _container(things.thing_of_dict)),
    (list, _container(things.thing_of_list)),
    (deque, _container(things.thing_of_deque)),
    (set, _container(things.thing_of_set)),
    (tuple, _Search.passed_through),
    (frozenset, _Search.passed_through),
    (types.MappingProxyType, lambda search, value: search.queue.extend(value.values())),
    *((kind, _Search.value) for kind in (bytearray, array.array, io.StringIO, io.BytesIO, random.Random, Generator)),
]


def _slots_of(kind: type) -> list[str]:
    if kind not in _SLOTS:
        _SLOTS[kind] = [] if _is_foreign(kind) else things.slots_of(kind)
    return _SLOTS[kind]


def _package(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _is_users_own(kind: type) -> bool:
    """Whether the attributes of a class may be counters and lists of a user's."""
    package = _package(kind.__module__)
    return package not in _LIBRARIES and package not in _STANDARD and package not in ("torchmetrics", "builtins")


def _is_foreign(kind: type) -> bool:
    """Whether the attributes of an object are nothing that a forward of the user's changes."""
    if any(base.__name__ in _SURROUNDINGS and _package(base.__module__) in _LIBRARIES for base in kind.__mro__):
        return True
    package = _package(kind.__module__)
    return package in _LIBRARIES or (package in _STANDARD | {"builtins"} and package not in _OPEN)
