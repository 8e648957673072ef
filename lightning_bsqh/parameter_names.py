"""The optimizer's parameters by their full names, whatever happens to its groups (method §7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.roles import role_of

#: A parameter group, as torch.optim has it.
Group = dict[str, Any]


class ParameterNames:
    """Knows what the parameters in groups are called, and which of them R acts on.

    Args:
        layers: The layers of the network.
        on_weight: Called with the name of a weight that is of no layer, to ask whether R acts on it.
    """

    def __init__(self, layers: Sequence[Layer], on_weight: Callable[[str], bool]) -> None:
        self._layers = layers
        self._on_weight = on_weight
        #: Names of what R acts on.
        self.regularized: set[str] = set().union(*(layer.regularized for layer in layers))
        self._known: list[list[Tensor]] = []
        self._names: list[list[str]] = []

    def by_group(self, groups: Sequence[Group]) -> list[tuple[Group, list[str]]]:
        """The groups as they are now; Lightning's callbacks for fine-tuning replace all of them at once."""
        now = [group["params"] for group in groups]
        if len(now) != len(self._known) or not all(map(_same, now, self._known)):
            self._names = [self._of(group) for group in groups]
            self._known = [list(parameters) for parameters in now]
        return list(zip(groups, self._names, strict=True))

    def named(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """All parameters in the groups."""
        return {
            name: parameter
            for group, names in self.by_group(groups)
            for name, parameter in zip(names, group["params"], strict=True)
        }

    def moving(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Those that move in an iteration: frozen ones do not."""
        return {name: parameter for name, parameter in self.named(groups).items() if parameter.requires_grad}

    def regularized_moving(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """What R acts on in an iteration."""
        return {name: p for name, p in self.moving(groups).items() if name in self.regularized}

    def name_of(self, groups: Sequence[Group], parameter: Tensor) -> str:
        """The name of one of them.

        Raises:
            KeyError: If it is in no group.
        """
        for name, other in self.named(groups).items():
            if other is parameter:
                return name
        raise KeyError(f"a tensor of shape {tuple(parameter.shape)} is none of the optimizer's parameters")

    def regularized_by_group(self, groups: Sequence[Group]) -> dict[str, list[Tensor]]:
        """What R acts on and moves, by the groups' names; groups without any are left out."""
        found: dict[str, list[Tensor]] = {}
        for group, names in self.by_group(groups):
            named = zip(group["params"], names, strict=True)
            weights = [p for p, name in named if name in self.regularized and p.requires_grad]
            if weights:
                found.setdefault(group["name"], []).extend(weights)
        return found

    def without_known(self, groups: Sequence[Group], group: Group) -> Group:
        """A group that is to be added, without what is in the groups already."""
        given = group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        known = {id(p) for other in groups for p in other["params"]}
        return {**group, "params": [m for m in members if id(m[1] if isinstance(m, tuple) else m) not in known]}

    def free_name(self, groups: Sequence[Group], group: Group) -> str:
        """What to call a group that is to be added; callbacks that report by group need every name once."""
        taken = {other["name"] for other in groups}
        name = str(group.get("name", f"layer{len(taken)}"))
        while name in taken:
            name += "'"
        return name

    def _of(self, group: Group) -> list[str]:
        """The names in a group, known from the layers or made from that of the group."""
        names = []
        for index, parameter in enumerate(group["params"]):
            own = [n for layer in self._layers for n, p in layer.parameters.items() if p is parameter]
            names += own or [self._new(f"{group['name']}.{index}", parameter)]
        return names

    def _new(self, name: str, parameter: Tensor) -> str:
        if role_of(name, parameter).is_weight and self._on_weight(name):
            self.regularized.add(name)
        return name


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(p is q for p, q in zip(first, second, strict=True))
