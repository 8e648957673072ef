"""The string "bsqh" among the names of strategies, under both of Lightning's names."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from lightning_bsqh.namespace import NAME, OTHER, MisconfigurationException, StrategyRegistry, pl
from lightning_bsqh.namespace.chosen import VARIABLE

#: What to do where the other name is meant.
WAY_OUT = f"import {OTHER} before lightning_bsqh, or set the environment variable {VARIABLE}={OTHER}"


def register(kind: type[pl.strategies.Strategy], name: str) -> None:
    """Makes a strategy known by a name; where Lightning is also imported under its other name, a refusal there.

    Args:
        kind: The strategy's class, which has ``register_strategies``.
        name: Its name.
    """
    if name not in StrategyRegistry.available_strategies():
        kind.register_strategies(StrategyRegistry)
    strategies: Any = sys.modules.get(f"{OTHER}.strategies")
    if strategies is not None and name not in strategies.StrategyRegistry.available_strategies():
        strategies.StrategyRegistry.register(name, _refuse, description=f"only for a Trainer of {NAME}")


def _refuse(**_: Any) -> NoReturn:
    raise MisconfigurationException(
        f'strategy="bsqh" is here for a Trainer of {NAME}, and this Trainer is of {OTHER}: {WAY_OUT}.'
    )
