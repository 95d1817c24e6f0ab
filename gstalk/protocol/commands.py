"""Every command of beanstalkd's protocol: its name, the replies that it may have, and its bytes.

A `Command` is the table of one command's reply words. The functions at the end check a caller's arguments and build
what goes on the wire. Nothing unchecked gets there: a put with a bad header leaves its body in the stream, where the
server runs it as commands.
"""

from __future__ import annotations

from typing import Any

from gstalk import errors
from gstalk.protocol import checks
from gstalk.protocol import replies as r

__all__ = [
    "BURY",
    "DELETE",
    "IGNORE",
    "KICK",
    "KICK_JOB",
    "LIST_TUBES",
    "LIST_TUBES_WATCHED",
    "LIST_TUBE_USED",
    "PAUSE_TUBE",
    "PEEK",
    "PEEK_BURIED",
    "PEEK_DELAYED",
    "PEEK_READY",
    "PUT",
    "RELEASE",
    "RESERVE",
    "RESERVE_JOB",
    "STATS",
    "STATS_JOB",
    "STATS_TUBE",
    "TOUCH",
    "USE",
    "WATCH",
    "Command",
    "bury",
    "by_id",
    "by_tube",
    "kick",
    "pause_tube",
    "plain",
    "put",
    "put_head",
    "release",
    "reserve",
]


class Command:
    """A command's name and reply words.

    Args:
        name: As the protocol spells it.
        replies: The words that say yes, each with its parser.
        refusals: Those of its own that say no; what every command can be told is added.
        uses: Whether it acts on the tube in use, and so goes wrong with a `use` that failed before it.

    Attributes:
        expected: All words of its own, for messages.
    """

    __slots__ = ("expected", "name", "refusals", "replies", "uses")

    def __init__(self, name: str, replies: r.Parsers, refusals: r.Refusals | None = None, uses: bool = False) -> None:
        self.name = name
        self.replies = dict(replies)
        self.refusals = {**r.REFUSALS, **(refusals or {})}
        self.expected = (*replies, *(refusals or {}))
        self.uses = uses

    def __repr__(self) -> str:
        return f"<Command {self.name}>"


def _not_found(what: str) -> r.Refusals:
    return {b"NOT_FOUND": r.refusal(errors.NotFoundError, what)}


_no_such_job = _not_found("no such job, or not in a state for this")
_not_ours = _not_found("no such job for this connection; its time to run may be over")
_no_such_tube = _not_found("no such tube")

PUT = Command(
    "put",
    {b"INSERTED": r.inserted},
    {
        b"BURIED": r.put_buried,
        b"JOB_TOO_BIG": r.refusal(errors.JobTooBigError, "the body is larger than the server's max-job-size"),
        b"EXPECTED_CRLF": r.refusal(errors.ExpectedCrlfError, "the server missed the body's end; connection closed"),
    },
    uses=True,
)
USE = Command("use", {b"USING": r.using})
RESERVE = Command(
    "reserve-with-timeout",
    {b"RESERVED": r.found, b"TIMED_OUT": r.word},
    {b"DEADLINE_SOON": r.refusal(errors.DeadlineSoonError, "a job held by this connection is about to run out")},
)
RESERVE_JOB = Command("reserve-job", {b"RESERVED": r.found}, _no_such_job)
DELETE = Command("delete", {b"DELETED": r.word}, _not_ours)
RELEASE = Command("release", {b"RELEASED": r.word}, {b"BURIED": r.release_buried, **_not_ours})
BURY = Command("bury", {b"BURIED": r.word}, _not_ours)
TOUCH = Command("touch", {b"TOUCHED": r.word}, _not_ours)
WATCH = Command("watch", {b"WATCHING": r.count})
IGNORE = Command(
    "ignore",
    {b"WATCHING": r.count},
    {b"NOT_IGNORED": r.refusal(errors.NotIgnoredError, "the last tube watched can't be ignored")},
)
_peeked: r.Parsers = {b"FOUND": r.found, b"NOT_FOUND": r.word}
PEEK = Command("peek", _peeked)
PEEK_READY = Command("peek-ready", _peeked, uses=True)
PEEK_DELAYED = Command("peek-delayed", _peeked, uses=True)
PEEK_BURIED = Command("peek-buried", _peeked, uses=True)
KICK = Command("kick", {b"KICKED": r.count}, uses=True)
KICK_JOB = Command("kick-job", {b"KICKED": r.word}, _no_such_job)
STATS = Command("stats", {b"OK": r.server_stats})
STATS_TUBE = Command("stats-tube", {b"OK": r.tube_stats}, _no_such_tube)
STATS_JOB = Command("stats-job", {b"OK": r.job_stats}, _not_found("no such job"))
LIST_TUBES = Command("list-tubes", {b"OK": r.tube_list})
LIST_TUBE_USED = Command("list-tube-used", {b"USING": r.using})
LIST_TUBES_WATCHED = Command("list-tubes-watched", {b"OK": r.tube_list})
PAUSE_TUBE = Command("pause-tube", {b"PAUSED": r.word}, _no_such_tube)


def plain(command: Command) -> bytes:
    """Build a command without arguments."""
    return b"%b\r\n" % command.name.encode("ascii")


def by_id(command: Command, job_id: int) -> bytes:
    """Build a command on one job."""
    return b"%b %d\r\n" % (command.name.encode("ascii"), checks.check_job_id(job_id))


def by_tube(command: Command, tube: str) -> bytes:
    """Build a command on one tube."""
    return b"%b %b\r\n" % (command.name.encode("ascii"), checks.tube_bytes(tube))


def put_head(priority: int, delay: int, ttr: int) -> bytes:
    """Build what all puts with these numbers begin with; they have been checked."""
    return b"put %d %d %d " % (priority, delay, ttr)


def put(body: checks.Body, head: bytes) -> bytes:
    """Build a put.

    Args:
        head: Its beginning, made by `put_head`. A `PutParams` keeps it: to write out its numbers for each put would
            cost more than all the rest of this.
    """
    if type(body) is not bytes or len(body) > checks.MAX_BODY:
        body = checks.check_body(body)
    return b"%b%d\r\n%b\r\n" % (head, len(body), body)


def reserve(seconds: int) -> bytes:
    """Build a reserve that the server answers after so many seconds at most."""
    return b"reserve-with-timeout %d\r\n" % seconds


def release(job_id: int, priority: int, delay: Any) -> bytes:
    """Build a release."""
    return b"release %d %d %d\r\n" % (
        checks.check_job_id(job_id),
        checks.check_priority(priority),
        checks.check_delay(delay),
    )


def bury(job_id: int, priority: int) -> bytes:
    """Build a bury."""
    return b"bury %d %d\r\n" % (checks.check_job_id(job_id), checks.check_priority(priority))


def kick(bound: int) -> bytes:
    """Build a kick of at most `bound` jobs of the tube in use."""
    return b"kick %d\r\n" % checks.check_bound(bound)


def pause_tube(tube: str, delay: Any) -> bytes:
    """Build a pause of a tube."""
    return b"pause-tube %b %d\r\n" % (checks.tube_bytes(tube), checks.check_delay(delay))
