"""Whether there is nothing left to do in some tubes."""

from __future__ import annotations

from collections.abc import Sequence

import gevent
from gevent.event import Event

import gstalk
from gstalk.connection.clock import monotonic

__all__ = ["until_empty"]

PATIENCE = 10.0  # seconds without a server before it is given up
PAUSE = 0.25  # seconds between two looks while there is work, unless a job ends


def until_empty(uris: Sequence[str], tubes: Sequence[str], finished: Event) -> None:
    """Wait until no job of these tubes is ready or reserved, by anybody. Delayed and buried ones don't count.

    Tubes are looked at one after the other, and a handler may put into one that was just seen empty before it
    finishes its job in one that is seen next. So all must be empty twice, and nothing may have been put meanwhile:
    then there was a moment, between the two looks, when all of them were empty at the same time.

    Args:
        uris: The servers.
        tubes: The tubes of each.
        finished: Set when a job has been finished, so that it is worth a look.

    Raises:
        DisconnectedError: A server could not be reached, at first or for some time.
    """
    conns: dict[str, gstalk.Conn] = {}
    reached = float("-inf")
    before: list[int | None] | None = None
    try:
        while True:
            try:
                seen = _look(conns, uris, tubes)
                reached = monotonic()
            except gstalk.DisconnectedError:
                if monotonic() - reached > PATIENCE:
                    raise
                seen = None
            if seen is not None and seen == before:
                return
            before = seen
            if seen is None:
                finished.clear()
                finished.wait(PAUSE)
            gevent.sleep(0.02)
    finally:
        for conn in conns.values():
            conn.close()


def _look(conns: dict[str, gstalk.Conn], uris: Sequence[str], tubes: Sequence[str]) -> list[int | None] | None:
    """How many jobs have ever been put in each tube, or `None` where there is something left to do."""
    totals: list[int | None] = []
    for uri in uris:
        if uri not in conns or not conns[uri].is_connected:
            conns[uri] = gstalk.dial(uri)
        for tube in tubes:
            try:
                stats = conns[uri].stats_tube(tube)
            except gstalk.NotFoundError:
                totals.append(None)
                continue
            if stats.current_jobs_ready or stats.current_jobs_reserved:
                return None
            totals.append(stats.total_jobs)
    return totals
