"""What each reply word means: a function for every word that beanstalkd can answer with.

A `Parser` reads a word that says yes, and returns the result; a `Refusal` one that says no, and returns the error. Both
get the request that the reply belongs to, and only look at it. They raise `Malformed` for anything that the protocol
does not allow; `stream` turns that into a `ProtocolError`. Numbers are read strictly: Python's own `int()` would take
``+1``, ``1_0`` and blanks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gstalk import errors
from gstalk.protocol import checks, stats

if TYPE_CHECKING:
    from gstalk.protocol.request import Request

__all__ = [
    "BODIED",
    "MAX_REPLY",
    "REFUSALS",
    "Malformed",
    "Parser",
    "Parsers",
    "Refusal",
    "Refusals",
    "body_size",
    "job_id",
    "number",
    "refusal",
]

MAX_ID = 2**64 - 1
MAX_REPLY = 2**30  # the most that beanstalkd can be told to hold in a job (-z)

# Both get the request and what stands on the line behind the word, without a body's size; a parser gets the body too,
# b"" where there is none.
Parser = Callable[["Request", bytes, bytes], Any]
Refusal = Callable[["Request", bytes], errors.GstalkError]
Parsers = Mapping[bytes, Parser]  # by word
Refusals = Mapping[bytes, Refusal]


class Malformed(Exception):
    """A reply that breaks the protocol's grammar or answers another command.

    Attributes:
        job_id: Of a job whose body has not the end that was announced.
    """

    def __init__(self, job_id: int | None = None) -> None:
        self.job_id = job_id


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
    value = number(text, MAX_ID)
    if not value:
        raise Malformed
    return value


def body_size(text: bytes) -> int:
    """Read the size of the body that follows a line."""
    return number(text, MAX_REPLY)


#: The words of lines that a body follows.
BODIED = frozenset((b"RESERVED", b"FOUND", b"OK"))


def refusal(kind: type[errors.GstalkError], what: str) -> Refusal:
    """Make the function for a word that says no and stands alone on its line."""

    def refuse(request: Request, rest: bytes) -> errors.GstalkError:
        if rest:
            raise Malformed
        return kind(f"{request}: {what}")

    return refuse


def word(request: Request, rest: bytes, body: bytes) -> None:
    """A word that says yes, or that there is none, and stands alone."""
    if rest:
        raise Malformed


def inserted(request: Request, rest: bytes, body: bytes) -> int:
    return job_id(rest)


def put_buried(request: Request, rest: bytes) -> errors.BuriedError:
    stored = job_id(rest)
    why = f"the server was out of memory and buried the job, as {stored}; it is stored"
    return errors.BuriedError(f"{request}: {why}", stored)


def release_buried(request: Request, rest: bytes) -> errors.BuriedError:
    if rest:
        raise Malformed
    return errors.BuriedError(f"{request}: the server was out of memory and buried the job instead", request.key)


def count(request: Request, rest: bytes, body: bytes) -> int:
    return number(rest, MAX_ID)


def using(request: Request, rest: bytes, body: bytes) -> str:
    if request.key is not None and rest != request.key:
        raise Malformed
    if not checks.is_tube(rest):
        raise Malformed
    return rest.decode("ascii")


def found(request: Request, rest: bytes, body: bytes) -> tuple[int, bytes]:
    """RESERVED and FOUND."""
    found_id = job_id(rest)
    if request.key is not None and request.key != found_id:
        raise Malformed
    return found_id, body


def yaml(parse: Callable[[bytes], Any], echo: str = "") -> Parser:
    """Make the parser of an OK reply, whose body is statistics or a list of tubes.

    Args:
        parse: Reads the body.
        echo: The field that says what was asked for; a server may lack it.
    """

    def parse_ok(request: Request, rest: bytes, body: bytes) -> Any:
        try:
            result = parse(body)
        except errors.ProtocolError as error:
            raise errors.ProtocolError(f"{request}: {error}; connection closed") from None
        told = getattr(result, echo) if echo else None
        if told is not None and told != (
            request.key.decode("ascii") if isinstance(request.key, bytes) else request.key
        ):
            raise Malformed
        return result

    return parse_ok


server_stats = yaml(stats.ServerStats.parse)
tube_stats = yaml(stats.TubeStats.parse, "name")
job_stats = yaml(stats.JobStats.parse, "id")
tube_list = yaml(stats.parse_list)

#: What any command can be refused with.
REFUSALS: Refusals = {
    b"OUT_OF_MEMORY": refusal(errors.OutOfMemoryError, "the server has no room for it"),
    b"INTERNAL_ERROR": refusal(errors.InternalError, "a bug in the server; it may have acted"),
    b"DRAINING": refusal(errors.DrainingError, "the server takes no new jobs until it is restarted"),
    b"BAD_FORMAT": refusal(errors.BadFormatError, "the server calls the command malformed; connection closed"),
    b"UNKNOWN_COMMAND": refusal(errors.UnknownCommandError, "the server doesn't know the command; connection closed"),
}
