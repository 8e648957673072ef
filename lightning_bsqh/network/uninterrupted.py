"""Ctrl-C in the few lines in which a step is half done (method §2)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within, an interrupt (SIGINT) waits for the end.

    Python runs signal handlers in the main thread only, and a handler that is none of Python's own cannot be put back;
    in both cases nothing is done.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


@contextmanager
def within_all(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """Within, all of these contexts; interrupts wait while they are entered and left, so that none is left half done.

    Args:
        contexts: Not yet entered; the first one is entered first and left last.
    """
    stack = ExitStack()
    try:
        with uninterrupted():
            for context in contexts:
                stack.enter_context(context)
        yield
    finally:
        try:
            with uninterrupted():
                stack.__exit__(*sys.exc_info())
        except BaseException:
            # An interrupt that came just before they waited; what has been left already is left out.
            with uninterrupted():
                stack.close()
            raise
