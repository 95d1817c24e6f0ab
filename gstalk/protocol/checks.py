"""Checks of what a caller passes: a wrong type is a `TypeError`, a right type out of range an `InvalidArgumentError`.

They are strict because the server isn't. It runs the body of a put that it refused as commands, takes a line end in
a tube's name for the end of the command, and reads ``1e3`` as 1.

Each returns the builtin value that it was given, or that a subclass holds (an `IntEnum`, a `str` Enum). What is kept,
compared or sent is that value. A subclass may say anything about itself: its `str()`, its hash and its length are its
own. So only methods of the builtin classes are called here, as functions (`str.__str__(value)`), and kinds are told by
`type(value)`, which no object can change.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator, Iterable, Mapping
from datetime import timedelta
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar

from gstalk.errors import InvalidArgumentError

__all__ = [
    "Body",
    "by_tube",
    "check_bodies",
    "check_body",
    "check_bound",
    "check_callable",
    "check_delay",
    "check_job_id",
    "check_priority",
    "check_returned",
    "check_ttr",
    "check_tube",
    "check_tubes",
    "is_tube",
    "known_tubes",
    "number",
    "seconds",
    "text",
    "texts",
    "tube_bytes",
    "whole_number",
    "whole_seconds",
]

Value = TypeVar("Value")
Body = bytes | bytearray | memoryview

MAX_UINT32 = 2**32 - 1
MAX_ID = 2**64 - 1
MAXTUBE_BYTES = 200  # doc/protocol.txt, "use"
MAX_BODY = 2**30  # the most that beanstalkd can be told to hold (-z)

_TUBE_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+/;.$_()"
#: Tubes that have passed, as they go on the wire; emptied when it is full. A hot path may look for its own there.
known_tubes: dict[str, bytes] = {}
_KNOWN_MOST = 1024


def text(name: str, value: object) -> str:
    """Check a str."""
    if type(value) is str:
        return value
    if not issubclass(type(value), str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return str.__str__(value)


def texts(name: str, values: Any) -> list[str]:
    """Check some str; one alone means a list of one."""
    if isinstance(values, str):
        values = [values]
    _check_many(f"{name} must be a str or an iterable of str", values)
    return [text(f"each of {name}", value) for value in values]


def _check_many(what: str, values: object) -> None:
    """Check that one can go through the values, without beginning to. Those of bytes are ints, which nobody means."""
    kind = type(values)
    many = getattr(kind, "__iter__", None) is not None or hasattr(kind, "__getitem__")
    if not many or isinstance(values, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"{what}, got {kind.__name__}")


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Check an int from `least` to `most`."""
    if type(value) is not int:
        if not issubclass(type(value), int) or type(value) is bool:
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        value = int.__index__(value)  # type: ignore[arg-type]
    if not least <= value <= most:
        raise InvalidArgumentError(f"{name} must be from {least} to {most}, got {_shown(value)}")
    return value


def number(name: str, value: object, what: str = "a number (int or float)") -> float:
    """Check a finite number, not negative: int or float."""
    kind = type(value)
    held: float
    if issubclass(kind, float):
        held = float.__float__(value)  # type: ignore[arg-type]
    elif issubclass(kind, int) and kind is not bool:
        held = int.__index__(value)  # type: ignore[arg-type]
    else:
        raise TypeError(f"{name} must be {what}, got {kind.__name__}")
    if type(held) is float and not math.isfinite(held):
        raise InvalidArgumentError(f"{name} must be a finite number, got {held}")
    if held < 0:
        raise InvalidArgumentError(f"{name} must not be negative, got {_shown(held)}")
    try:
        return float(held)
    except OverflowError:
        raise InvalidArgumentError(f"{name} is too large: {_shown(held)}") from None


def seconds(name: str, value: object) -> float:
    """Check a duration in seconds: int, float or timedelta, not negative."""
    if issubclass(type(value), timedelta):
        value = timedelta.total_seconds(value)  # type: ignore[arg-type]
    return number(name, value, "seconds (int, float or timedelta)")


def _shown(value: float) -> str:
    """Show a number. Python refuses to write out an int of thousands of digits."""
    many = isinstance(value, int) and value.bit_length() > 256
    return f"a number of {int(value).bit_length()} bits" if many else str(value)


def whole_seconds(name: str, value: object, least: int = 0) -> int:
    """Check a duration that the server takes in whole seconds, and round it up."""
    if type(value) is int:  # a float would lose nothing here, but this is a put's usual way
        return whole_number(name, value, least, MAX_UINT32)
    whole = math.ceil(seconds(name, value))
    return whole_number(name, whole, least, MAX_UINT32)


def check_priority(value: object) -> int:
    return whole_number("priority", value, 0, MAX_UINT32)


def check_delay(value: object) -> int:
    return whole_seconds("delay", value)


def check_ttr(value: object) -> int:
    return whole_seconds("ttr", value, 1)


def check_job_id(value: object) -> int:
    return whole_number("job id", value, 1, MAX_ID)


def check_bound(value: object) -> int:
    return whole_number("bound", value, 0, MAX_UINT32)


def is_tube(wire: bytes) -> bool:
    """Tell whether it is a tube's name."""
    return 0 < len(wire) <= MAXTUBE_BYTES and wire[0] != ord("-") and not wire.translate(None, _TUBE_LETTERS)


def check_tube(tube: object) -> str:
    """Check a tube's name."""
    if type(tube) is str and tube in known_tubes:
        return tube
    name = text("tube", tube)
    tube_bytes(name)
    return name


def tube_bytes(tube: object) -> bytes:
    """Check a tube's name, and return it as it goes on the wire."""
    known = known_tubes.get(tube) if type(tube) is str else None
    if known is not None:
        return known
    name = text("tube", tube)
    wire = name.encode("utf-8", "surrogatepass")
    if not is_tube(wire):
        raise InvalidArgumentError(_fault(name, wire))
    if len(known_tubes) >= _KNOWN_MOST:
        known_tubes.clear()
    known_tubes[name] = wire
    return wire


def _fault(tube: str, name: bytes) -> str:
    shown = ascii(tube if len(tube) <= 40 else tube[:40] + "...")
    if not name:
        return "tube name is empty"
    if len(name) > MAXTUBE_BYTES:
        return f"tube name has {len(name)} bytes, at most {MAXTUBE_BYTES} allowed: {shown}"
    if name.startswith(b"-"):
        return f"tube name must not begin with a hyphen: {shown}"
    return f"tube name may hold letters, digits and -+/;.$_() only: {shown}"


def check_tubes(tubes: str | Iterable[str]) -> list[str]:
    """Check a list of tubes, in which each counts once; one str means a list of one."""
    names = [check_tube(name) for name in texts("tubes", tubes)]
    if not names:
        raise InvalidArgumentError("at least one tube is needed")
    return list(dict.fromkeys(names))


def by_tube(values: Mapping[str, Value]) -> dict[str, Value]:
    """Check the tubes that a mapping has something for; as keys, a `str` Enum's members have hashes of their own."""
    found: dict[str, Value] = {}
    for key, value in values.items():
        tube = check_tube(key)
        if tube in found:
            raise InvalidArgumentError(f"two handlers for tube {tube!r}")
        found[tube] = value
    return found


def check_bodies(bodies: object) -> None:
    """Check that there may be bodies in it; one body isn't many."""
    _check_many("bodies must be an iterable of bytes", bodies)


def check_body(body: object) -> bytes:
    """Check a job's body, and take a copy that nobody can change while it is sent."""
    kind = type(body)
    held: Any = body
    if kind is memoryview:
        try:
            size = held.nbytes  # its len() counts items, of whatever size
        except ValueError:
            raise InvalidArgumentError("body is a memoryview that was released") from None
    elif issubclass(kind, bytes):
        size = bytes.__len__(held)
    elif issubclass(kind, bytearray):
        size = bytearray.__len__(held)
    elif issubclass(kind, str):
        raise TypeError('body must be bytes, got str; encode it first: body.encode("utf-8")')
    else:
        raise TypeError(f"body must be bytes, bytearray or memoryview, got {kind.__name__}")
    if size > MAX_BODY:
        raise InvalidArgumentError(f"body has {size} bytes, more than beanstalkd can hold: {MAX_BODY}")
    if kind not in (bytes, bytearray, memoryview):  # `bytes` would ask a subclass for its `__bytes__`
        held = bytes.__getitem__(held, slice(None)) if issubclass(kind, bytes) else bytearray.copy(held)
    return bytes(held)


def check_callable(name: str, value: object, arguments: int) -> None:
    """Check a function of the user's, which is called with so many positional arguments, and runs to its end then.

    What can be seen is refused: a call of an `async def` or of a generator function only makes an object, and runs
    nothing. What can't be seen, a lambda that returns a coroutine for instance, shows itself at the call.

    Args:
        name: What the user calls it.
        value: The function, or whatever else can be called.
        arguments: How many positional arguments it gets.

    Raises:
        TypeError: It can't be called so, or would run nothing.
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    called = _called(value)
    is_function = type(called) is FunctionType
    if is_function and (inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)):
        what = "async def: a call of it would run nothing"
    elif is_function and inspect.isgeneratorfunction(called):
        what = "a generator function (it has a yield): a call of it would run nothing"
    else:
        _check_arguments(name, value, called, arguments)
        return
    raise TypeError(f"{name} must be a plain function, which runs to its end when it is called; this one is {what}")


def _called(value: object) -> object:
    """Find the function that runs when `value` is called, through partials, methods and objects with a `__call__`.

    By the real type: a mock or a proxy pretends to be the function that it stands for, and does what it likes. A
    decorated function is the decorator's: it may well run an `async def` to its end.
    """
    for _ in range(16):  # nobody goes deeper, but an object that is its own `__call__` has no end
        kind = type(value)
        if value.__class__ is not kind:
            break
        call = getattr(kind, "__call__", None)  # noqa: B004
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif kind is not FunctionType and not isinstance(value, type) and isinstance(call, (FunctionType, MethodType)):
            value = call
        else:
            break
    return value


def _check_arguments(name: str, value: Any, called: object, arguments: int) -> None:
    """Check the number of arguments, where the function that is called tells it."""
    known = type(called) in (FunctionType, BuiltinFunctionType) or issubclass(type(called), type)
    if not known or hasattr(called, "__signature__"):  # a decorator may set that, and pass on other arguments
        return
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # some of C's have none
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        many = "one argument" if arguments == 1 else f"{arguments} arguments"
        raise TypeError(f"{name} is called with {many}, which this one can't be: {error}") from None


def check_returned(name: str, result: object) -> None:
    """Check what such a function gave back: an awaitable or a generator means that it has not run; it is closed.

    Raises:
        TypeError: It is one.
    """
    if isinstance(result, (Awaitable, Generator, AsyncGenerator)):
        if isinstance(result, (Coroutine, Generator)):
            result.close()  # else Python warns that it was never awaited
        kind = type(result).__name__
        raise TypeError(
            f"{name} must run to its end when it is called; this one gave back an object that has yet to: {kind}"
        )
