"""Parameters of one device and dtype side by side in one vector, so that a step takes few operations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Pack:
    """Some of the trained parameters, whose elements stand side by side in one vector.

    All elementwise work of an iteration is done on such vectors: the number of operations that a device has to launch
    does not grow with the number of parameters.

    Args:
        parameters: At least one, all of one device and dtype.
        positions: Where each of them is among all parameters that are trained.
    """

    def __init__(self, parameters: Sequence[Tensor], positions: Sequence[int]) -> None:
        self.parameters = list(parameters)
        self.positions = list(positions)
        self.sizes = [p.numel() for p in self.parameters]
        self._targets = [_flat(p) for p in self.parameters]
        self._key = _key(self.parameters)
        self._staged: Tensor | None = None
        self._places: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Position and parameter."""
        return iter(zip(self.positions, self.parameters, strict=True))

    def is_current(self) -> bool:
        """Whether the parameters still lie where they did when this was made."""
        return self._key == _key(self.parameters)

    def values(self) -> Tensor:
        """A copy of what the parameters hold, shape ``[n]``."""
        return torch.cat([target.reshape(-1) if target.dim() != 1 else target for target in self._targets])

    def gradients(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients, shape ``[n]``, zero where there is none; valid until the next call.

        Args:
            gradients: One for each of all parameters that are trained; this takes its own.
        """
        if self._staged is None:
            first = self._targets[0]
            self._staged = torch.empty(sum(self.sizes), dtype=first.dtype, device=first.device)
            self._places = self.pieces(self._staged)
        own = [gradients[i] for i in self.positions]
        if missing := [place for place, g in zip(self._places, own, strict=True) if g is None]:
            torch._foreach_zero_(missing)
        given = [(place, g) for place, g in zip(self._places, own, strict=True) if g is not None]
        if given:
            torch._foreach_copy_([place for place, _ in given], [g for _, g in given])
        return self._staged

    def put(self, vector: Tensor) -> None:
        """Puts a vector's elements into the parameters, bit by bit."""
        pieces = vector.split(self.sizes)
        torch._foreach_copy_(
            self._targets,
            [p if t.dim() == 1 else p.view(t.shape) for p, t in zip(pieces, self._targets, strict=True)],
        )

    def side_by_side(self, values: Sequence[Tensor | float]) -> Tensor:
        """One vector of values for each of all parameters, in their shapes or scalars; this takes its own."""
        own = [values[i] for i in self.positions]
        like = self._targets[0]
        full = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in own]
        return torch.cat([v.expand(p.shape).reshape(-1) for v, p in zip(full, self.parameters, strict=True)])

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector's parts in the shapes of the parameters."""
        return [piece.view(p.shape) for piece, p in zip(vector.split(self.sizes), self.parameters, strict=True)]


def make_packs(parameters: Sequence[Tensor], first: Collection[int]) -> list[Pack]:
    """Packs for all parameters, one for each device and dtype.

    Args:
        parameters: All that are trained.
        first: Positions of those that are to stand first in their pack, such as the regularized ones.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i in sorted(range(len(parameters)), key=lambda i: i not in first):
        groups.setdefault((parameters[i].device, parameters[i].dtype), []).append(i)
    return [Pack([parameters[i] for i in group], group) for group in groups.values()]


def are_views(states: Sequence[Mapping[str, Any]], key: str, vector: Tensor) -> bool:
    """Whether what all these states hold under a key lies within a vector."""
    storage = vector.untyped_storage().data_ptr()
    return all(key in s and s[key].untyped_storage().data_ptr() == storage for s in states)


def check_dtypes(parameters: Mapping[str, Tensor]) -> None:
    """Refuses what cannot be trained by steps that are compared with each other.

    Args:
        parameters: All that are trained, by their full names.

    Raises:
        TypeError: If one of them is not real and floating, or is in half precision; the message names it.
    """
    check_real(parameters)
    for name, parameter in parameters.items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"params: {name} has dtype {parameter.dtype}, in which the change of a weight or of the loss over"
                " a step is rounded away: keep parameters in float32 and compute in half precision with"
                " torch.autocast (in Lightning precision='bf16-mixed')."
            )


def check_real(parameters: Mapping[str, Tensor]) -> None:
    """Raises TypeError unless all of these are real and floating; the message names the one that is not."""
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise TypeError(
                f"params: {name} has dtype {parameter.dtype}; only real floating ones can be trained. Keep real and"
                " imaginary part as two real parameters (torch.view_as_real, and torch.complex where they are used),"
                " or freeze it with requires_grad_(False)."
            )


def _flat(parameter: Tensor) -> Tensor:
    """The parameter's own memory, with one dimension where its strides permit it."""
    detached = parameter.detach()
    return detached.view(-1) if detached.is_contiguous() else detached


def _key(parameters: Sequence[Tensor]) -> list[tuple[int, torch.Size, tuple[int, ...]]]:
    return [(p.data_ptr(), p.shape, p.stride()) for p in parameters]
