"""Frozen dataclasses that cost little to import.

`dataclasses` looks at each field of a class, writes the text of its methods and has it compiled when the class is made,
so at every import: of `import gstalk` that was half. A `record` is a dataclass in everything else
(`fields`, `replace`, `asdict`, pickles, heirs, type checkers), but its methods are the ones below, which look at the
names of its fields when they are called. What `dataclasses` knows of a class is made when somebody asks for it: of a
twin, a dataclass with the same fields. So to make a record takes some microseconds more; one that is made often has
an `__init__` of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field, fields, make_dataclass, replace
from functools import cache
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["record"]


def _make(*, frozen: bool, slots: bool = False, kw_only: bool = False) -> Callable[[type], Any]:
    """As `dataclass` with these options, for a class that is the heir of no record.

    A field may have a default, or `field(default_factory=...)`. One with slots needs an `__init__` of its own.
    """
    assert frozen

    def make(cls: Any) -> Any:
        kind = _Kind(cls, kw_only)
        if slots:
            cls = _with_slots(cls, kind.names)
        kind.cls = cls
        cls._record = kind
        cls.__init__ = vars(cls).get("__init__", _init)  # its own, where one is made often
        cls.__repr__, cls.__eq__, cls.__hash__ = _repr, _eq, _hash
        cls.__setattr__, cls.__delattr__ = _setattr, _delattr
        cls.__replace__ = replace  # for `copy.replace`, from Python 3.13
        cls.__match_args__ = () if kw_only else kind.names  # type: ignore[misc]  # only mypy's own is final
        cls.__dataclass_fields__, cls.__dataclass_params__ = _OfTwin("fields"), _OfTwin("params")
        cls.__signature__ = _Signature()
        return cls

    return make


if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    record = _make


class _Kind:
    """What the methods below know of a record, as its class's `_record`, which its heirs have, too.

    Attributes:
        cls: The class.
        names: Of its fields, in order.
        defaults: By name.
        made_anew: Names of those whose default is called, and gives each record one of its own.
        kw_only: Whether a field may be given by its name alone.
    """

    def __init__(self, cls: Any, kw_only: bool) -> None:
        self.cls = cls
        self.names = tuple(cls.__annotations__)
        self.defaults: dict[str, Any] = {name: vars(cls)[name] for name in self.names if name in vars(cls)}
        self.made_anew = [name for name, default in self.defaults.items() if isinstance(default, Field)]
        self.kw_only = kw_only
        for name in self.made_anew:
            self.defaults[name] = self.defaults[name].default_factory
            delattr(cls, name)  # as `dataclasses` does


def _with_slots(cls: Any, names: tuple[str, ...]) -> Any:
    """Make the class anew: its slots must be there when it is made, and its defaults must not."""
    body = {name: value for name, value in vars(cls).items() if name not in (*names, "__dict__", "__weakref__")}
    body |= {"__slots__": names, "__qualname__": cls.__qualname__, "__getstate__": _getstate, "__setstate__": _setstate}
    return type(cls)(cls.__name__, cls.__bases__, body)


def _init(self: Any, /, *values: Any, **named: Any) -> None:
    kind: _Kind = self._record
    call = f"{type(self).__qualname__}.__init__()"
    most = 0 if kind.kw_only else len(kind.names)
    if len(values) > most:
        raise TypeError(f"{call} takes {most} positional arguments but {len(values)} were given")
    for name, value in zip(kind.names, values, strict=False):
        if name in named:
            raise TypeError(f"{call} got multiple values for argument {name!r}")
        named[name] = value
    found = {}
    for name in kind.names:
        if name in named:
            found[name] = named.pop(name)
        elif name in kind.defaults:
            default = kind.defaults[name]
            found[name] = default() if name in kind.made_anew else default
        else:
            raise TypeError(f"{call} missing a required argument: {name!r}")
    for name in named:
        raise TypeError(f"{call} got an unexpected keyword argument {name!r}")
    vars(self).update(found)  # not by attribute: it is frozen
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self._record.names])


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name in self._record.names)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _setattr(self: Any, name: str, value: object) -> None:
    _check_may_change(self, name, "assign to")
    super(self._record.cls, self).__setattr__(name, value)


def _delattr(self: Any, name: str) -> None:
    _check_may_change(self, name, "delete")
    super(self._record.cls, self).__delattr__(name)


def _check_may_change(self: Any, name: str, do: str) -> None:
    """An heir may have attributes of its own; in everything else a record stays what it is."""
    if type(self) is self._record.cls or name in self._record.names:
        raise FrozenInstanceError(f"cannot {do} field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=False):
        object.__setattr__(self, each.name, value)


@cache
def _twin(kind: _Kind) -> Any:
    """Make a dataclass with the same fields."""
    found = []
    for name in kind.names:
        default = kind.defaults.get(name, MISSING)
        spec = field(default_factory=default) if name in kind.made_anew else field(default=default)
        found.append((name, kind.cls.__annotations__[name], spec))
    return make_dataclass(kind.cls.__name__, found, frozen=True, kw_only=kind.kw_only)


class _OfTwin:
    """What `dataclasses` itself reads of a class."""

    def __init__(self, what: str) -> None:
        self._name = f"__dataclass_{what}__"

    def __get__(self, instance: object, cls: Any) -> Any:
        return getattr(_twin(cls._record), self._name)


class _Signature:
    """What `inspect.signature` and `help` show: the fields, and not the arguments of `_init`."""

    def __get__(self, instance: object, cls: Any) -> inspect.Signature:
        if instance is not None or cls.__init__ is not _init:  # the class's own, or an heir's
            raise AttributeError("__signature__")
        return inspect.signature(_twin(cls._record))
