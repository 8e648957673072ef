"""Forward hooks of experiment trackers, which only write down what they see (method §6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

#: Their hooks change nothing in the forward; what others' do cannot be known, so those run in trials, too.
TRACKERS = frozenset({"wandb", "comet_ml", "clearml", "mlflow", "neptune", "aim", "tensorboard", "tensorboardX"})


@contextmanager
def resting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the forward hooks of trackers on these modules, such as those of ``wandb.watch``, do nothing.

    torch keeps hooks in two dicts with underscores and gives no public way to switch one off.
    """
    spaces = [vars(m).get(name) for m in modules for name in ("_forward_hooks", "_forward_pre_hooks")]
    found = [(hooks, key, hook) for hooks in spaces if hooks for key, hook in hooks.items() if _is_tracker(hook)]
    for hooks, key, _ in found:
        # In its place, so that the order stays.
        hooks[key] = _nothing
    try:
        yield
    finally:
        for hooks, key, hook in found:
            hooks[key] = hook


def _is_tracker(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    name = getattr(hook, "__module__", None) or type(hook).__module__
    return name.partition(".")[0] in TRACKERS


def _nothing(*args: Any) -> None:
    return None
