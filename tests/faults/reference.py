"""A plain second parser of replies, written from the protocol's text, and what it takes a reply to mean.

It shares nothing with gstalk's own: whole streams, regular expressions, a new bytes object for every step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from gstalk import errors
from gstalk.protocol import commands
from gstalk.protocol.commands import Command

KEY = 7  # the id that commands on one job are about
ID = rb"([1-9][0-9]{0,19})"
NUMBER = rb"(0|[1-9][0-9]{0,19})"
TUBE = rb"([A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,199})"
DICT = rb"---(?:\n(?:[^\n:]+:[^\n]*)?)*"
LIST = rb"---(?:\n(?:- [^\n]+)?)*"
LONGEST_LINE = 256
LARGEST = 2**30  # a body: more than that no beanstalkd can hold

_FOUND = {b"FOUND %b %b" % (ID, NUMBER): b".*", b"NOT_FOUND": None}
_STATS = {b"OK " + NUMBER: DICT}
_MISSING: dict[bytes, bytes | None] = {b"NOT_FOUND": None}

#: A command, its key, and its good replies: the pattern of a line, and that of the body behind it.
GRAMMAR: dict[str, tuple[Command, Any, dict[bytes, bytes | None]]] = {
    "put": (commands.PUT, None, {b"INSERTED " + ID: None, b"BURIED " + ID: None, b"JOB_TOO_BIG": None}),
    "use": (commands.USE, b"tube", {rb"USING tube": None}),
    "list-tube-used": (commands.LIST_TUBE_USED, None, {b"USING " + TUBE: None}),
    "reserve": (
        commands.RESERVE,
        None,
        {b"RESERVED %b %b" % (ID, NUMBER): b".*", b"TIMED_OUT": None, b"DEADLINE_SOON": None},
    ),
    "reserve-job": (commands.RESERVE_JOB, KEY, {b"RESERVED (7) " + NUMBER: b".*", **_MISSING}),
    "peek": (commands.PEEK, KEY, {b"FOUND (7) " + NUMBER: b".*", **_MISSING}),
    "peek-ready": (commands.PEEK_READY, None, _FOUND),
    "peek-delayed": (commands.PEEK_DELAYED, None, _FOUND),
    "peek-buried": (commands.PEEK_BURIED, None, _FOUND),
    "delete": (commands.DELETE, KEY, {b"DELETED": None, **_MISSING}),
    "release": (commands.RELEASE, KEY, {b"RELEASED": None, b"BURIED": None, **_MISSING}),
    "bury": (commands.BURY, KEY, {b"BURIED": None, **_MISSING}),
    "touch": (commands.TOUCH, KEY, {b"TOUCHED": None, **_MISSING}),
    "watch": (commands.WATCH, None, {b"WATCHING " + NUMBER: None}),
    "ignore": (commands.IGNORE, None, {b"WATCHING " + NUMBER: None, b"NOT_IGNORED": None}),
    "kick": (commands.KICK, None, {b"KICKED " + NUMBER: None}),
    "kick-job": (commands.KICK_JOB, KEY, {b"KICKED": None, **_MISSING}),
    "pause-tube": (commands.PAUSE_TUBE, None, {b"PAUSED": None, **_MISSING}),
    "stats": (commands.STATS, None, {**_STATS}),
    "stats-tube": (commands.STATS_TUBE, b"tube", {**_STATS, **_MISSING}),
    "stats-job": (commands.STATS_JOB, KEY, {**_STATS, **_MISSING}),
    "list-tubes": (commands.LIST_TUBES, None, {b"OK " + NUMBER: LIST}),
    "list-tubes-watched": (commands.LIST_TUBES_WATCHED, None, {b"OK " + NUMBER: LIST}),
}
#: What any command can be told; the first three leave the connection in step.
COMMON = {
    b"OUT_OF_MEMORY": errors.OutOfMemoryError,
    b"INTERNAL_ERROR": errors.InternalError,
    b"DRAINING": errors.DrainingError,
}
ENDING = [b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"]
ERRORS = {
    **COMMON,
    b"JOB_TOO_BIG": errors.JobTooBigError,
    b"NOT_FOUND": errors.NotFoundError,
    b"NOT_IGNORED": errors.NotIgnoredError,
    b"DEADLINE_SOON": errors.DeadlineSoonError,
}
_PATTERNS = {
    name: [(re.compile(line), None if body is None else re.compile(body, re.DOTALL)) for line, body in replies.items()]
    for name, (_, _, replies) in GRAMMAR.items()
}


@dataclass
class Reply:
    """A good reply: whose, its word, the arguments on its line, its body."""

    name: str
    word: bytes
    arguments: list[bytes]
    body: bytes | None


# "bad": refused at once, or when the body that the bad line seems to announce is there.
Verdict = Literal["in step", "unfinished", "refused", "bad"]


def read(names: list[str], stream: bytes) -> tuple[list[Reply], Verdict]:
    """All replies up to the first that breaks the protocol, and what is to be said of the rest of the stream."""
    accepted: list[Reply] = []
    for name in names:
        line, mark, rest = stream.partition(b"\r\n")
        if not mark:
            return accepted, "refused" if len(stream) > LONGEST_LINE else "unfinished" if stream else "in step"
        reply = Reply(name, *_split(line), None)
        if line not in COMMON:
            match = next(((m, body) for form, body in _PATTERNS[name] if (m := form.fullmatch(line))), None)
            if match is None or any(int(n) >= 2**64 for n in match[0].groups() if n.isdigit() and b"USING" not in line):
                return accepted, "bad" if reply.word in (b"RESERVED", b"FOUND") else "refused"
            if match[1] is not None:
                size = int(reply.arguments[-1])
                if size > LARGEST:
                    return accepted, "refused"
                if len(rest) < size + 2:
                    return accepted, "unfinished"
                reply.body, end, rest = rest[:size], rest[size : size + 2], rest[size + 2 :]
                if end != b"\r\n" or not match[1].fullmatch(reply.body) or not _about(reply):
                    return accepted, "refused"
        accepted.append(reply)
        stream = rest
    return accepted, "refused" if stream else "in step"


def _about(reply: Reply) -> bool:
    """Statistics are those that were asked for, as far as they say; text that is none is not for us to judge."""
    assert reply.body is not None
    match reply.name:
        case "stats-job":
            told = re.findall(rb"^id: *(.*?) *$", reply.body, re.MULTILINE)
            return not told or told[-1].lstrip(b"0") == b"7"
        case "stats-tube":
            told = re.findall(rb"^name: *(.*?) *$", reply.body, re.MULTILINE)
            return not told or told[-1].strip(b'"') == b"tube"
    return True


def _split(line: bytes) -> tuple[bytes, list[bytes]]:
    word, *arguments = line.split(b" ")
    return word, arguments


def meaning(reply: Reply) -> Any:
    """What a caller must be told: a value, or the class of an error."""
    numbers = [int(text) for text in reply.arguments if text.isdigit()]
    match reply.word, reply.name:
        case b"NOT_FOUND", "peek" | "peek-ready" | "peek-delayed" | "peek-buried":
            return None
        case b"BURIED", "put" | "release":
            return errors.BuriedError
        case b"INSERTED" | b"WATCHING", _:
            return numbers[0]
        case b"KICKED", "kick":
            return numbers[0]
        case ((b"RESERVED" | b"FOUND"), _):
            return numbers[0], reply.body
        case b"USING", _:
            return reply.arguments[0].decode()
        case b"OK", _:
            assert reply.body is not None
            lines = [line for line in reply.body.decode().split("\n")[1:] if line]
            if reply.name.startswith("list"):
                return [_unquoted(line[2:]) for line in lines]
            pairs = (line.split(":", 1) for line in lines)
            return {key: _unquoted(value.strip(" ")) for key, value in pairs}
    return ERRORS.get(reply.word)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text
