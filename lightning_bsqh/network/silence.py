"""While a trial runs nobody hears of it: no prints, no messages of ``logging``, no warnings (method §6)."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
#: How many trials, one inside the other, are running in each thread.
_silent: dict[int, int] = {}
_undo: list[Callable[[], None]] = []


@contextmanager
def silence() -> Iterator[None]:
    """Within, what this thread says is not heard; other threads are."""
    thread = threading.get_ident()
    with _lock:
        if not _silent:
            _install()
        _silent[thread] = _silent.get(thread, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _silent[thread] -= 1
            if not _silent[thread]:
                del _silent[thread]
            if not _silent:
                while _undo:
                    _undo.pop()()


def is_silent() -> bool:
    """Whether this thread is running a trial."""
    return threading.get_ident() in _silent


class _Muted:
    """A stream that takes nothing from a thread that is to be silent, and is the stream itself for all others."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if is_silent() else self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        if not is_silent():
            self._stream.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _install() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is not None:
            _replace(sys, name, _Muted(getattr(sys, name)))
    _replace(logging.Logger, "handle", _unless_silent(logging.Logger.handle))
    # The place that the standard library names for this; what is raised as an error stays one.
    _replace(warnings, "showwarning", _unless_silent(warnings.showwarning))


def _replace(owner: Any, name: str, value: Any) -> None:
    before = getattr(owner, name)
    setattr(owner, name, value)

    def undo() -> None:
        # Unless somebody else has put something there meanwhile.
        if getattr(owner, name) is value:
            setattr(owner, name, before)

    _undo.append(undo)


def _unless_silent(call: Callable[..., Any]) -> Callable[..., Any]:
    def heard(*args: Any, **kwargs: Any) -> Any:
        return None if is_silent() else call(*args, **kwargs)

    return heard
