"""What each reply word means: a parser for every word that beanstalkd can answer with.

A parser gets the slot that the reply belongs to and the bytes behind the word, and sets the slot's `result` or `error`.
It raises `Malformed` for anything that the protocol does not allow; `session` turns that into a `ProtocolError`.
Numbers are read strictly: Python's own `int()` would take ``+1``, ``1_0`` and blanks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gstalk import errors
from gstalk.protocol import checks, stats

if TYPE_CHECKING:
    from gstalk.protocol.session import Slot

__all__ = ["BODIED", "COMMON", "MAX_REPLY", "Malformed", "Parser", "body_size", "failure", "job_id", "number"]

MAX_ID = 2**64 - 1
MAX_REPLY = 2**30  # the most that beanstalkd can be told to hold in a job (-z)

Parser = Callable[["Slot", bytes, bytes], None]  # slot, the line behind the word, the body (b"" where there is none)


class Malformed(Exception):
    """A reply that breaks the protocol's grammar or answers another command."""


def number(text: bytes, most: int) -> int:
    """Read a decimal number without sign, blank or leading zero, of at most `most`."""
    if not text.isdigit() or (text[0] == 48 and len(text) > 1) or len(text) > 20:
        raise Malformed
    value = int(text)
    if value > most:
        raise Malformed
    return value


def job_id(text: bytes) -> int:
    """Read a job id, 1 to 2**64-1."""
    # The usual case, in as few steps as can be: every put and every job comes through here.
    if text.isdigit() and text[0] != 48 and len(text) < 20:
        return int(text)
    value = number(text, MAX_ID)
    if not value:
        raise Malformed
    return value


def body_size(word: bytes, rest: bytes) -> int:
    """Read the size of the body that follows a line: ``OK <bytes>``, or ``RESERVED <id> <bytes>``."""
    if word != b"OK":
        _, _, rest = rest.partition(b" ")
    if rest.isdigit() and rest[0] != 48 and len(rest) < 10:  # as in `job_id`
        return int(rest)
    return number(rest, MAX_REPLY)


#: The words of lines that a body follows.
BODIED = frozenset((b"RESERVED", b"FOUND", b"OK"))


def failure(kind: type[errors.GstalkError], what: str) -> Parser:
    """Make the parser of an error word, which stands alone on its line."""

    def parse(slot: Slot, rest: bytes, body: bytes) -> None:
        if rest:
            raise Malformed
        error = kind(f"{slot}: {what}")
        if isinstance(error, errors.ProtocolError):
            raise error
        slot.error = error

    return parse


def word(slot: Slot, rest: bytes, body: bytes) -> None:
    """A word that says yes and stands alone."""
    if rest:
        raise Malformed
    slot.result = None


def nothing(slot: Slot, rest: bytes, body: bytes) -> None:
    """A word that says: there is none."""
    word(slot, rest, body)


def inserted(slot: Slot, rest: bytes, body: bytes) -> None:
    slot.result = job_id(rest)


def put_buried(slot: Slot, rest: bytes, body: bytes) -> None:
    number_ = job_id(rest)
    slot.error = errors.BuriedError(
        f"{slot}: the server was out of memory and buried the job, as {number_}; it is stored", number_
    )


def release_buried(slot: Slot, rest: bytes, body: bytes) -> None:
    if rest:
        raise Malformed
    slot.error = errors.BuriedError(f"{slot}: the server was out of memory and buried the job instead", slot.key)


def count(slot: Slot, rest: bytes, body: bytes) -> None:
    slot.result = number(rest, MAX_ID)


def using(slot: Slot, rest: bytes, body: bytes) -> None:
    if slot.key is not None and rest != slot.key:
        raise Malformed
    if not checks.TUBE.fullmatch(rest):
        raise Malformed
    slot.result = rest.decode("ascii")


def found(slot: Slot, rest: bytes, body: bytes) -> None:
    """RESERVED and FOUND: the result is the pair of id and body."""
    text, _, _ = rest.partition(b" ")
    number_ = job_id(text)
    if slot.key is not None and slot.key != number_:
        raise Malformed
    slot.result = (number_, body)


def yaml(parse: Callable[[bytes], Any], echo: str = "") -> Parser:
    """Make the parser of an OK reply, whose body is statistics or a list of tubes.

    Args:
        parse: Reads the body.
        echo: The field that says what was asked for; a server may lack it.
    """

    def parse_ok(slot: Slot, rest: bytes, body: bytes) -> None:
        try:
            slot.result = parse(body)
        except errors.ProtocolError as error:
            raise errors.ProtocolError(f"{slot}: {error}; connection closed") from None
        told = getattr(slot.result, echo) if echo else None
        if told is not None and told != (slot.key.decode("ascii") if isinstance(slot.key, bytes) else slot.key):
            raise Malformed

    return parse_ok


server_stats = yaml(stats.ServerStats.parse)
tube_stats = yaml(stats.TubeStats.parse, "name")
job_stats = yaml(stats.JobStats.parse, "id")
tube_list = yaml(stats.parse_list)

#: What any command can be answered with.
COMMON: dict[bytes, Parser] = {
    b"OUT_OF_MEMORY": failure(errors.OutOfMemoryError, "the server has no room for it"),
    b"INTERNAL_ERROR": failure(errors.InternalError, "a bug in the server; it may have acted"),
    b"DRAINING": failure(errors.DrainingError, "the server takes no new jobs until it is restarted"),
    b"BAD_FORMAT": failure(errors.BadFormatError, "the server calls the command malformed; connection closed"),
    b"UNKNOWN_COMMAND": failure(errors.UnknownCommandError, "the server doesn't know the command; connection closed"),
}
