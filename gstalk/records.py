"""Frozen dataclasses that cost little to import.

`dataclasses` writes the text of each class's methods and has it compiled when the class is made, so at every import:
for statistics, settings and events that was a third of the instructions of `import gstalk`. A `record` is a dataclass
in everything else (`fields`, `replace`, `asdict`, pickles, type checkers), but its methods are the ones below, which
look at its fields when they are called. So to make one takes some microseconds more; one that is made often has an
`__init__` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["record"]


def _make(**options: bool) -> Callable[[type], type]:
    """As `dataclass(**options)`; the class must be frozen; one with slots needs an `__init__` of its own."""

    def make(cls: Any) -> type:
        cls.__init__ = vars(cls).get("__init__", _init)  # its own, where one is made often
        cls.__repr__, cls.__eq__, cls.__hash__ = _repr, _eq, _hash
        cls.__signature__ = _Signature()
        return dataclass(init=False, repr=False, eq=False, **options)(cls)

    return make


if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    record = _make


def _record(cls: type) -> Any:
    """The record that a class is, or comes from: an heir's own fields are for methods of its own."""
    return next(each for each in cls.__mro__ if isinstance(vars(each).get("__signature__"), _Signature))


def _init(self: Any, /, *values: Any, **named: Any) -> None:
    cls = _record(type(self))
    call = f"{type(self).__qualname__}.__init__()"
    if len(values) > len(cls.__match_args__):
        raise TypeError(f"{call} takes {len(cls.__match_args__)} positional arguments but {len(values)} were given")
    for name, value in zip(cls.__match_args__, values, strict=False):
        if name in named:
            raise TypeError(f"{call} got multiple values for argument {name!r}")
        named[name] = value
    found = {}
    for field in fields(cls):
        if field.name in named:
            found[field.name] = named.pop(field.name)
        elif field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        else:
            raise TypeError(f"{call} missing a required argument: {field.name!r}")
    for name in named:
        raise TypeError(f"{call} got an unexpected keyword argument {name!r}")
    vars(self).update(found)  # not by attribute: it is frozen
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in fields(_record(type(self))))


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(_record(type(self))))
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


class _Signature:
    """What `inspect.signature` and `help` show: the fields, and not the arguments of `_init`."""

    def __get__(self, instance: object, cls: Any) -> Signature:
        if instance is not None or cls.__init__ is not _init:  # the class's own, or an heir's
            raise AttributeError("__signature__")
        return Signature([_parameter(field) for field in fields(_record(cls))], return_annotation=None)


def _parameter(field: Any) -> Parameter:
    default = field.default if field.default_factory is MISSING else field.default_factory
    return Parameter(
        field.name,
        Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
        default=Parameter.empty if default is MISSING else default,
        annotation=field.type,
    )
