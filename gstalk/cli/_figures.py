"""What servers tell about themselves and their tubes, all of them asked at the same time; what it is called elsewhere
stands in `_exposition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gevent

import gstalk
from gstalk.cli._servers import answers, tube_stats
from gstalk.cli._sweep import State, age_of_first

__all__ = ["AGES", "Seen", "Tube", "look"]

AGES: tuple[State, ...] = ("ready", "buried")  # of delayed jobs the first is no sign of anything


class Tube(NamedTuple):
    """A tube. `ages`: of its first job in each of these states, in seconds; 0 where there is none."""

    stats: gstalk.TubeStats
    ages: dict[State, int]


class Seen(NamedTuple):
    """A server as it was seen; `error` says why it was not, and then nothing else is known."""

    uri: str
    stats: gstalk.ServerStats | None
    tubes: list[Tube]
    error: gstalk.GstalkError | None


def look(uris: Sequence[str], tubes: Sequence[str], timeout: float) -> list[Seen]:
    """Look at servers, over a connection of its own each, which is closed again.

    Args:
        tubes: Those to look at; all, if none is named. One that isn't there, or vanishes meanwhile, is left out.
        timeout: Seconds after which a server that hasn't told all counts as one that is down.
    """
    return answers(lambda uri: _look_at(uri, tubes, timeout), uris)


def _look_at(uri: str, tubes: Sequence[str], timeout: float) -> Seen:
    late = gstalk.CommandTimeoutError(f"{uri}: did not tell all within {timeout:g} s", "maybe")
    try:
        with gevent.Timeout(timeout, late), gstalk.dial(uri, conn_timeout=timeout) as conn:
            stats = conn.stats()
            return Seen(uri, stats, answers(lambda each: _tube(conn, each), tube_stats(conn, tubes)), None)
    except gstalk.GstalkError as error:  # also where it was half done: half of the tubes would look like all of them
        return Seen(uri, None, [], error)


def _tube(conn: gstalk.Conn, stats: gstalk.TubeStats) -> Tube:
    # Only where there is such a job: a peek uses the tube, and makes one that has just vanished anew.
    ages = {
        state: (age_of_first(conn, str(stats.name), state) if getattr(stats, f"current_jobs_{state}") else None) or 0
        for state in AGES
    }
    return Tube(stats, ages)
