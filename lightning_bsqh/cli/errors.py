"""Which errors end the command line with a sentence, and what the sentence is."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator

from lightning_bsqh.namespace import MisconfigurationException

#: Set to anything, this environment variable has tracebacks shown.
SHOW_TRACEBACKS = "LIGHTNING_BSQH_TRACEBACK"
_KINDS = (ArgumentError, ValueError, TypeError, RuntimeError, OSError, ModuleNotFoundError, MisconfigurationException)
# Whose errors are about options and files. What is raised elsewhere, in the user's modules or in torch, may be a fault
# of a program, and who looks for it needs the traceback.
_ABOUT_OPTIONS = ("lightning_bsqh", "lightning", "pytorch_lightning", "lightning_fabric", "jsonargparse", "importlib")
# Data and weights are what options name: what cannot be read or downloaded is said there, whatever a library raised.
_READS_FILES = "lightning_bsqh.zoo."
_SAYS_LITTLE = re.compile(
    r"\s*(Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |"
    r"- Expected a path but .* invalid|- Expected a <class '(NoneType|collections\.abc\.\w+)'>$)"
)
_KEY = re.compile(r'\s*(?:- )?Parser key "([^"]+)":\s*(.*)')


def sentence_for(error: BaseException) -> str | None:
    """What to say in place of a traceback; None where the traceback is to be shown."""
    if not isinstance(error, _KINDS) or not all(_is_about_options(link) for link in _chain(error)):
        return None
    return in_short(str(error))


def in_short(message: str) -> str:
    """The keys and the innermost reasons of what jsonargparse says; any other message as it is."""
    if "Parser key" not in message and "Union subtypes" not in message:
        return message
    keys: list[str] = []
    reasons: list[tuple[int, str]] = []
    for line in message.splitlines():
        key = _KEY.match(line)
        if key is not None:
            keys.append(key[1])
            line = " " * len(line) + key[2]
        elif line.startswith("Given value") or line.lstrip().startswith("Given value"):
            continue
        if line.strip() and not _SAYS_LITTLE.match(line):
            reasons.append((len(line) - len(line.lstrip()), line.strip().removeprefix("- ")))
    # What does not fit because it is another kind of thing altogether is of no interest where something else is wrong.
    telling = [reason for reason in reasons if not reason[1].startswith(("Expected a <class 'str'>", "Problem with"))]
    chosen = telling or reasons
    deepest = max((indent for indent, _ in chosen), default=0)
    said = "; ".join(dict.fromkeys(reason for indent, reason in chosen if indent == deepest))
    return f"{'.'.join(keys)}: {said}" if keys else said or message


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if _raised_in(error).startswith(_READS_FILES):
            return
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_about_options(error: BaseException) -> bool:
    return error.__traceback__ is None or _raised_in(error).partition(".")[0] in _ABOUT_OPTIONS


def _raised_in(error: BaseException) -> str:
    """The name of the module that raised it, empty where it was not raised at all."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", ""))
