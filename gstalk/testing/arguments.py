"""The arguments of commands, as the server reads them: numbers as C does, names by their characters."""

from __future__ import annotations

import re

__all__ = ["BURY", "ID", "PAUSE", "PUT", "RELEASE", "Bad", "below", "c_number", "is_name", "name", "numbers"]

_NAME = re.compile(rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,199}")
ID = re.compile(rb" *(\d+)")
BURY = re.compile(rb" *(\d+) +(\d+)")
RELEASE = re.compile(rb" *(\d+) +(\d+) +(\d+)")
PUT = re.compile(rb" *(\d+) +(\d+) +(\d+) +(\d+)(.*)", re.DOTALL)
PAUSE = re.compile(rb" *([A-Za-z0-9\-+/;.$_()]+) +(\d+)")
_C_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?\d+)")


class Bad(Exception):
    """A line that is answered with BAD_FORMAT."""


def below(limit: int, text: bytes) -> int:
    number = int(text)
    if number >= limit:
        raise Bad
    return number


def numbers(pattern: re.Pattern[bytes], text: bytes) -> list[int]:
    """An id, and the numbers behind it."""
    match = pattern.fullmatch(text)
    if match is None:
        raise Bad
    first, *others = match.groups()
    return [below(2**64, first), *(below(2**32, other) for other in others)]


def c_number(text: bytes, least: int, limit: int) -> int | None:
    """Read a number as `strtol` does; whatever follows it is ignored."""
    match = _C_NUMBER.match(text)
    if match is None:
        return None
    number = int(match[1])
    if not least <= number < limit:
        raise Bad
    return number


def name(text: bytes) -> bytes:
    if not _NAME.fullmatch(text):
        raise Bad
    return text


def is_name(text: bytes) -> bool:
    """Whether a tube may be called so."""
    return _NAME.fullmatch(text) is not None
