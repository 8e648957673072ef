"""What configure_optimizers returned, whatever its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_bsqh._validation import shown
from lightning_bsqh.namespace import MisconfigurationException, rank_zero_warn
from lightning_bsqh.optimizer import BSQHOptimizer


@dataclass
class Configured:
    """Optimizers and schedulers, in their order.

    Attributes:
        optimizers: The optimizers.
        schedulers: The schedulers, each as the dict that Lightning knows, with an entry ``scheduler`` at least.
    """

    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    schedulers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def names(self) -> str:
        """What there is, for a message."""
        found = []
        for optimizer in self.optimizers:
            rate = f"(lr={optimizer.defaults['lr']})" if "lr" in optimizer.defaults else ""
            found.append(type(optimizer).__name__ + rate)
        return " and ".join([*found, *self.scheduler_names])

    @property
    def scheduler_names(self) -> list[str]:
        """The kinds of the schedulers."""
        return [type(each["scheduler"]).__name__ for each in self.schedulers]

    def only_optimizer(self, owner: str) -> torch.optim.Optimizer | None:
        """The optimizer, None if there is none.

        Raises:
            MisconfigurationException: If there are several.
        """
        if len(self.optimizers) > 1:
            raise MisconfigurationException(
                f"configure_optimizers of {owner} returned {len(self.optimizers)} optimizers"
                f" ({', '.join(type(o).__name__ for o in self.optimizers)}); BSQHStrategy trains all parameters with"
                " one loss. Return one of them, or None."
            )
        return self.optimizers[0] if self.optimizers else None


def read_configured(value: Any, owner: str) -> Configured:
    """Takes apart what configure_optimizers returned.

    Args:
        value: What it returned.
        owner: Name of the module's class, for messages.

    Raises:
        MisconfigurationException: If there is something in it that is neither an optimizer nor a scheduler.
    """
    found = Configured()
    if value is not None:
        _read(value, found, f"configure_optimizers of {owner} returned {shown(value)}")
    if found.schedulers and not found.optimizers:
        raise MisconfigurationException(
            f"configure_optimizers of {owner} returned a scheduler without its optimizer. Return both, or None."
        )
    return found


def _read(value: Any, found: Configured, what: str) -> None:
    if isinstance(value, torch.optim.Optimizer):
        found.optimizers.append(value)
    elif _is_scheduler(value):
        found.schedulers.append({"scheduler": value})
    elif isinstance(value, Mapping) and "scheduler" in value:
        if not _is_scheduler(value["scheduler"]):
            raise _nonsense(what)
        found.schedulers.append(dict(value))
    elif isinstance(value, Mapping) and "optimizer" in value:
        _read(value["optimizer"], found, what)
        if value.get("lr_scheduler") is not None:
            _read(value["lr_scheduler"], found, what)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for member in value:
            _read(member, found, what)
    else:
        raise _nonsense(what)


def _is_scheduler(value: Any) -> bool:
    # Lightning takes schedulers of one's own that do not derive from torch's, if they have this.
    own = all(callable(getattr(value, name, None)) for name in ("step", "state_dict", "load_state_dict"))
    return isinstance(value, LRScheduler) or (own and not isinstance(value, (type, torch.nn.Module)))


def _nonsense(what: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"{what}: return an optimizer, [optimizers], ([optimizers], [schedulers]), a dict with the key 'optimizer', or"
        " None, or leave the method out."
    )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def choose_optimizer(
    configured: Configured,
    owner: str,
    make: Callable[[torch.optim.Optimizer | None], BSQHOptimizer],
    has_options: bool,
) -> BSQHOptimizer:
    """The module's own BSQHOptimizer, or one that trains what its optimizer would; says what is ignored.

    Args:
        configured: What configure_optimizers returned.
        owner: Name of the module's class.
        make: Makes an optimizer for what another one would train.
        has_options: Whether the user gave options to the strategy.

    Raises:
        MisconfigurationException: If there are several optimizers.
    """
    given = configured.only_optimizer(owner)
    if isinstance(given, BSQHOptimizer):
        if configured.schedulers:
            names = " and ".join(configured.scheduler_names)
            rank_zero_warn(f"{names} from configure_optimizers is ignored: ε has its own schedule.")
        if has_options:
            rank_zero_warn(
                "The options of BSQHStrategy are ignored: configure_optimizers returned a BSQHOptimizer with its own."
            )
        return given
    optimizer = make(given)
    if given is not None:
        rank_zero_warn(
            f"{configured.names} from configure_optimizers is ignored:"
            " BSQHStrategy trains the same parameters by the bSQH method."
        )
        _borrow_settings(optimizer, given)
    return optimizer


def _borrow_settings(optimizer: BSQHOptimizer, given: torch.optim.Optimizer) -> None:
    """Lets code that reads other settings of the user's optimizer from a group find them; nothing uses them."""
    plain = {k: v for k, v in given.defaults.items() if v is None or isinstance(v, (bool, int, float, str))}
    for group in optimizer.param_groups:
        for name, value in plain.items():
            group.setdefault(name, value)
