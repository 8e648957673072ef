"""What a training_step says to the world, and a world that answers but does not listen (method §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from lightning_bsqh.namespace import DummyExperiment, DummyLogger, pl
from lightning_bsqh.network.silence import is_silent
from lightning_bsqh.network.tree import detached
from lightning_bsqh.trainer_access import Metrics, metrics_as_before

#: Methods of loggers that write, besides those whose names begin with ``log_``.
_WRITES = frozenset({"save", "finalize", "after_save_checkpoint", "watch", "unwatch", "use_artifact"})


class Log:
    """What a training_step says by ``log``, ``log_dict`` and ``print``, to be said again later.

    Attributes:
        calls: Module, method and arguments of each call.
        went_outside: Whether a logger was used directly, of which there is no record.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, str, tuple[Any, ...], dict[str, Any]]] = []
        self.went_outside = False

    @contextmanager
    def listening(self, parts: Iterable[nn.Module]) -> Iterator[None]:
        """Notes the calls of all modules among ``parts`` and lets them through."""
        with self._replaced(parts, through=True):
            yield

    @contextmanager
    def instead(
        self, module: pl.LightningModule, parts: Iterable[nn.Module], metrics: Metrics | None = None
    ) -> Iterator[None]:
        """Notes the calls instead of letting them through, and keeps the Trainer's loggers from writing.

        The loggers stay what they are otherwise: their kind, their folders, their versions.

        Args:
            module: The module that is trained.
            parts: The module and its parts.
            metrics: The Trainer's metrics as they are to be seen within; None for those of the moment.
        """
        trainer = module.trainer
        loggers = trainer.loggers
        with ExitStack() as stack:
            quiet = [stack.enter_context(self._quiet(logger)) for logger in loggers]
            if any(a is not b for a, b in zip(quiet, loggers, strict=True)):
                trainer.loggers = quiet
                stack.callback(setattr, trainer, "loggers", loggers)
            if metrics is not None:
                stack.enter_context(metrics_as_before(trainer, metrics))
            stack.enter_context(self._replaced(parts, through=False))
            yield

    @contextmanager
    def _replaced(self, parts: Iterable[nn.Module], through: bool) -> Iterator[None]:
        modules = [child for child in parts if isinstance(child, pl.LightningModule)]
        own = [(child, name, vars(child).get(name)) for child in modules for name in ("log", "log_dict", "print")]
        for child, name, _ in own:
            vars(child)[name] = self._recorder(child, name, getattr(child, name) if through else None)
        try:
            yield
        finally:
            for child, name, previous in own:
                if previous is None:
                    vars(child).pop(name, None)
                else:
                    vars(child)[name] = previous

    def _recorder(self, child: nn.Module, name: str, call: Callable[..., Any] | None) -> Callable[..., None]:
        def record(*args: Any, **kwargs: Any) -> None:
            self.calls.append((child, name, detached(args), detached(kwargs)))
            if call is not None:
                call(*args, **kwargs)

        return record

    @contextmanager
    def _quiet(self, logger: Any) -> Iterator[Any]:
        """Within, the logger itself writes nothing in this thread; one that cannot be changed is replaced."""
        kind = type(logger)
        try:
            # The same object, so that whoever else holds it is served, too.
            object.__setattr__(logger, "__class__", _quiet_kind(kind))
        except TypeError:
            yield _Deaf(self)
            return
        _listeners.append((logger, self))
        try:
            yield logger
        finally:
            _listeners.pop()
            object.__setattr__(logger, "__class__", kind)


#: Loggers that write nothing at the moment, and who wants to know that they were asked to.
_listeners: list[tuple[Any, Log]] = []
_quiet_kinds: dict[type, type] = {}


def _quiet_kind(kind: type) -> type:
    """A class of the same name whose objects write nothing while their thread runs a trial."""
    if kind not in _quiet_kinds:
        names = {n for base in kind.__mro__ for n in vars(base) if n.startswith("log_") or n in _WRITES}
        body: dict[str, Any] = {n: _unless_silent(getattr(kind, n)) for n in names if callable(getattr(kind, n))}
        body["experiment"] = _experiment_of(kind)
        # By its path, unlike its name, it is private: parsers that look a logger up among all subclasses pass it over.
        body.update(__module__=kind.__module__, __qualname__=f"_Quiet{kind.__qualname__}", __doc__=kind.__doc__)
        _quiet_kinds[kind] = type(kind)(kind.__name__, (kind,), body)
    return _quiet_kinds[kind]


def _unless_silent(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(logger: Any, *args: Any, **kwargs: Any) -> Any:
        return _note(logger) if is_silent() else method(logger, *args, **kwargs)

    return call


def _experiment_of(kind: type) -> property:
    def experiment(logger: Any) -> Any:
        if is_silent():
            _note(logger)
            return DummyExperiment()
        own = vars(logger).get("experiment", kind.experiment)  # type: ignore[attr-defined]
        return own.__get__(logger, kind) if hasattr(own, "__get__") else own

    return property(experiment)


def _note(logger: Any) -> None:
    for each, log in _listeners:
        if each is logger:
            log.went_outside = True


class _Deaf(DummyLogger):
    """Does nothing, but notes that it was asked to."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __getattribute__(self, name: str) -> Any:
        if name in _WRITES or name.startswith("log_") or name == "experiment":
            object.__getattribute__(self, "_log").went_outside = True
        return super().__getattribute__(name)


def say_again(calls: Sequence[tuple[nn.Module, str, tuple[Any, ...], dict[str, Any]]]) -> None:
    """Repeats what was noted."""
    for module, name, args, kwargs in calls:
        getattr(module, name)(*args, **kwargs)
