"""Two commands in one write, for whoever works through a tube: the second one's answer is worth waiting for."""

from __future__ import annotations

from collections.abc import Callable

from gstalk.connection.connection import Connection
from gstalk.errors import DisconnectedError, NotFoundError
from gstalk.job import Job
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.request import Request
from gstalk.protocol.stats import JobStats

__all__ = ["act_and_peek", "look_and_reserve"]


def act_and_peek(
    connection: Connection, act: Command, job: Job, look: Command, acted: Callable[[], object]
) -> Job | None:
    """Kick or delete a job, and peek at the next one of the tube in use.

    Args:
        act: `KICK_JOB` or `DELETE`.
        job: As an earlier peek has shown it; one that somebody else has taken meanwhile is let go.
        look: Which peek.
        acted: Called when the server has done it, also where the caller is interrupted in his wait.

    Returns:
        The next job; `None`: there is none.
    """
    line = commands.by_id(act, job.id)
    acting = Request(act, connection.uri, job.id)
    acting.end = len(line)
    peeking = Request(look, connection.uri)
    pipe = connection.send(line + commands.plain(look), peeking, before=(acting,))
    try:
        found = pipe.wait(peeking)
    except DisconnectedError:
        if isinstance(acting.error, DisconnectedError):
            raise acting.error from None  # it knows whether the deed may have been done
        raise
    finally:
        if acting.is_settled and acting.error is None:
            acted()
    if acting.error is not None and not isinstance(acting.error, NotFoundError):
        raise acting.take_error()
    return connection.peeked(found, job.tube)


def look_and_reserve(connection: Connection, job_id: int, reserved: Callable[[Job, JobStats | None], object]) -> None:
    """Ask for a job's statistics, and reserve it; nobody waits for the replies.

    Args:
        reserved: Called, in the hub, if it could be reserved, with the job and its statistics of just before.
    """

    def got(request: Request) -> None:
        if request.error is None:
            reserved(connection.hold(*request.result), asking.result if asking.error is None else None)

    line = commands.by_id(commands.STATS_JOB, job_id)
    asking = Request(commands.STATS_JOB, connection.uri, job_id)
    asking.end = len(line)
    reserving = Request(commands.RESERVE_JOB, connection.uri, job_id, got)
    connection.send(line + commands.by_id(commands.RESERVE_JOB, job_id), reserving, before=(asking,))
