"""What `gstalk top` knows of the servers and their tubes: asked again and again, with rates between two looks."""

from __future__ import annotations

import time
from typing import NamedTuple

import gstalk
from gstalk.cli._servers import answers, tube_stats
from gstalk.cli._sweep import age_of_first

__all__ = ["Line", "Watcher"]


class Line(NamedTuple):
    """A tube as it is now. `oldest` is the age in seconds of the job that is next."""

    uri: str
    stats: gstalk.TubeStats
    puts: float | None
    deletes: float | None
    oldest: int | None


class Watcher:
    """Asks the servers again and again; one that fails is dialed anew at the next look.

    Attributes:
        lines: The tubes, as they were at the last look.
        server_stats: Each server's statistics then.
        failures: Why a server has none.
    """

    def __init__(self, uris: list[str]) -> None:
        self.uris = uris
        self.lines: list[Line] = []
        self.server_stats: dict[str, gstalk.ServerStats] = {}
        self.failures: dict[str, gstalk.GstalkError] = {}
        self._conns: dict[str, gstalk.Conn] = {}
        self._before: dict[str, dict[str, tuple[float, int, int]]] = {}  # from URI and tube to time, puts, deletes

    def look(self) -> None:
        """Ask all servers at the same time."""
        looks = answers(self._look_at, self.uris)
        self.lines = [line for _, lines in looks for line in lines]
        told = [(uri, answer) for uri, (answer, _) in zip(self.uris, looks, strict=True)]
        self.server_stats = {uri: answer for uri, answer in told if isinstance(answer, gstalk.ServerStats)}
        self.failures = {uri: answer for uri, answer in told if isinstance(answer, gstalk.GstalkError)}

    def close(self) -> None:
        for conn in self._conns.values():
            conn.close()

    def _look_at(self, uri: str) -> tuple[gstalk.ServerStats | gstalk.GstalkError, list[Line]]:
        try:
            if uri not in self._conns:
                self._conns[uri] = gstalk.dial(uri)
            conn = self._conns[uri]
            return conn.stats(), self._tubes(conn)
        except gstalk.GstalkError as error:
            if (broken := self._conns.pop(uri, None)) is not None:
                broken.close()
            return error, []

    def _tubes(self, conn: gstalk.Conn) -> list[Line]:
        def oldest(stats: gstalk.TubeStats) -> int | None:
            return age_of_first(conn, str(stats.name), "ready") if stats.current_jobs_ready else None

        tubes = tube_stats(conn)
        now = time.monotonic()
        before = self._before.get(conn.uri, {})
        self._before[conn.uri] = {str(each.name): (now, each.total_jobs or 0, each.cmd_delete or 0) for each in tubes}
        lines = []
        for stats, age in zip(tubes, answers(oldest, tubes), strict=True):
            puts = deletes = None
            _, total, deleted = self._before[conn.uri][str(stats.name)]
            then, total_then, deleted_then = before.get(str(stats.name), (now, 0, 0))
            if now > then and total >= total_then:  # else the tube is new
                puts, deletes = (total - total_then) / (now - then), max(deleted - deleted_then, 0) / (now - then)
            lines.append(Line(conn.uri, stats, puts, deletes, age))
        return lines
