"""Values in disguise: subclasses of the builtin classes that hold a plain value and say something else about it."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable
from datetime import timedelta
from typing import Any

__all__ = ["BODIES", "DURATIONS", "NUMBERS", "TEXTS", "hostile"]

# What makes an object, and what every look at one goes through.
_NEEDED = {"__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__getattribute__", "__doc__"}


def hostile(kind: type) -> type[Any]:
    """Make a subclass each of whose methods fails when it is called: gstalk asks the builtin class alone."""

    def fails(name: str) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> Any:
            raise AssertionError(f"{kind.__name__}.{name} of a subclass was called")

        return fail

    methods: dict[str, Any] = {name: fails(name) for name in dir(kind) if name not in _NEEDED}
    more = ("__bytes__", "__index__", "__int__", "__float__", "__buffer__", "__iter__", "__len__", "__bool__")
    return type(f"Hostile{kind.__name__.title()}", (kind,), {**{name: fails(name) for name in more}, **methods})


class LyingText(str):
    """Says that it is another tube, another server, and shorter than it is."""

    def __str__(self) -> str:
        return "liar"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "liar"

    def __hash__(self) -> int:
        return hash("liar")

    def __eq__(self, other: object) -> bool:
        return other == "liar"

    def __len__(self) -> int:
        return 4

    def encode(self, *_: object) -> bytes:
        return b"liar"


class LyingNumber(int):
    """Says that it is 7."""

    def __str__(self) -> str:
        return "7"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "7"

    def __index__(self) -> int:
        return 7

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return other == 7

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__
    __int__ = __ceil__ = __pos__ = __index__

    def __float__(self) -> float:
        return 7.0


class LyingDuration(timedelta):
    """Says that it is 7 seconds."""

    def total_seconds(self) -> float:
        return 7.0

    def __str__(self) -> str:
        return "0:00:07"

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


class LyingBytes(bytes):
    """Says that it is shorter, and other bytes."""

    def __len__(self) -> int:
        return 1

    def __bytes__(self) -> bytes:
        return b"l"

    def __str__(self) -> str:
        return "liar"


class LyingBytearray(bytearray):
    """The same."""

    def __len__(self) -> int:
        return 1

    def __bytes__(self) -> bytes:
        return b"l"


_enum: Any = enum  # its way of making a class by a call has no types


#: From a str, str's in disguise that hold it.
TEXTS: dict[str, Callable[[str], Any]] = {
    "hostile": hostile(str),
    "lying": LyingText,
    "str Enum": lambda text: _enum.Enum("Tube", {"MEMBER": text}, type=str)["MEMBER"],
}
if hasattr(_enum, "StrEnum"):  # from Python 3.11
    TEXTS["StrEnum"] = lambda text: _enum.StrEnum("Tube", {"MEMBER": text})["MEMBER"]

#: The same of an int.
NUMBERS: dict[str, Callable[[int], Any]] = {
    "hostile": hostile(int),
    "lying": LyingNumber,
    "IntEnum": lambda number: _enum.IntEnum("Number", {"MEMBER": number})["MEMBER"],
    "IntFlag": lambda number: _enum.IntFlag("Number", {"MEMBER": number})["MEMBER"],
}

#: From an int, durations of so many seconds.
DURATIONS: dict[str, Callable[[int], Any]] = {
    **NUMBERS,
    "float": lambda number: hostile(float)(number),
    "timedelta": lambda number: hostile(timedelta)(seconds=number),
    "lying timedelta": lambda number: LyingDuration(seconds=number),
}

#: From bytes, of which there are 8, bodies that hold them.
BODIES: dict[str, Callable[[bytes], Any]] = {
    "hostile bytes": hostile(bytes),
    "lying bytes": LyingBytes,
    "bytearray": bytearray,
    "hostile bytearray": hostile(bytearray),
    "lying bytearray": LyingBytearray,
    "memoryview": memoryview,
    "of a bytearray": lambda data: memoryview(bytearray(data)),
    "items of 4 bytes": lambda data: memoryview(array("I", data)),
    "items of 8 bytes": lambda data: memoryview(array("d", data)),
    "two dimensions": lambda data: memoryview(data).cast("B", (2, 4)),
    "every second byte": lambda data: memoryview(bytes(byte for each in data for byte in (each, 0)))[::2],
    "backwards": lambda data: memoryview(data[::-1])[::-1],
    "every second item of 4 bytes": lambda data: memoryview(array("I", data[:4] + b"none" + data[4:]))[::2],
}
