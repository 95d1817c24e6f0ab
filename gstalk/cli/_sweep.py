"""Acting on the jobs of a tube, one after the other: each time on the very job that a peek has just shown.

A `kick` with a count would take delayed jobs when there are fewer buried ones than it was told, and can't say which
jobs it took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import gstalk
from gstalk.conn import connection_of
from gstalk.connection.two_in_one import act_and_peek
from gstalk.protocol import commands
from gstalk.protocol.commands import Command

__all__ = ["STATES", "State", "age_of_first", "count_jobs", "peek", "sweep"]

State = Literal["ready", "delayed", "buried"]
# Delayed ones first: what becomes ready meanwhile is then found there.
STATES: tuple[State, ...] = ("delayed", "ready", "buried")
PEEKS: dict[State, Command] = {
    "ready": commands.PEEK_READY,
    "delayed": commands.PEEK_DELAYED,
    "buried": commands.PEEK_BURIED,
}


def count_jobs(conn: gstalk.Conn, tube: str, states: Sequence[State] = STATES) -> dict[State, int]:
    """How many jobs of a tube are in each of these states; none where there is no such tube."""
    try:
        stats = conn.stats_tube(tube)
    except gstalk.NotFoundError:
        return dict.fromkeys(states, 0)
    return {state: getattr(stats, f"current_jobs_{state}") or 0 for state in states}


def peek(conn: gstalk.Conn, tube: str, state: State) -> gstalk.Job | None:
    """Look at a tube's first job in a state."""
    return {"ready": conn.peek_ready, "delayed": conn.peek_delayed, "buried": conn.peek_buried}[state](tube)


def age_of_first(conn: gstalk.Conn, tube: str, state: State) -> int | None:
    """Seconds since the put of a tube's first job in a state; `None` where there is none, or it has just gone.

    The first ready one is the oldest of the most urgent, the first buried one that which has been buried longest: the
    server tells of no burial when it was.
    """
    job = peek(conn, tube, state)
    try:
        return None if job is None else job.stats().age
    except gstalk.NotFoundError:
        return None


def sweep(conn: gstalk.Conn, tube: str, state: State, act: Command, bound: int, acted: Callable[[int], None]) -> None:
    """Kick or delete the jobs of a tube that are in a state.

    A job that somebody else takes between the peek and the deed is let go, and not counted.

    Args:
        conn: A connection that nobody else uses.
        act: `KICK_JOB` or `DELETE`.
        bound: After how many jobs to end, come what may: others may put more jobs into the state meanwhile.
        acted: Called with 1 for each job.
    """
    job = peek(conn, tube, state) if bound else None
    while job is not None and bound:
        job = act_and_peek(connection_of(conn), act, job, PEEKS[state], partial(acted, 1))
        bound -= 1
