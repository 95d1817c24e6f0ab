"""`gstalk top`: the tubes, live."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
import gevent
from gevent import socket
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

import gstalk
from gstalk.cli._output import fields, plural, printable, row, short
from gstalk.cli._servers import Servers, answers, tube_stats
from gstalk.cli._sweep import age_of_first

__all__ = ["Line", "Screen", "top"]

INTERVAL = 1.0  # seconds between two looks
TICK = 0.1  # seconds until a look that has come is shown

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON every second, one object for each tube.")


class Line(NamedTuple):
    """A tube as it is now. `oldest` is the age in seconds of the job that is next."""

    uri: str
    stats: gstalk.TubeStats
    puts: float | None
    deletes: float | None
    oldest: int | None


class Column(NamedTuple):
    """A column, and where its value is found: in a `Line` or in its stats."""

    head: str
    field: str


COLUMNS = (  # 1 to 9 sort by them
    Column("tube", "name"),
    Column("ready", "current_jobs_ready"),
    Column("reserved", "current_jobs_reserved"),
    Column("delayed", "current_jobs_delayed"),
    Column("buried", "current_jobs_buried"),
    Column("waiting", "current_waiting"),
    Column("put/s", "puts"),
    Column("done/s", "deletes"),
    Column("oldest", "oldest"),
)


@click.command()
@as_json
@click.pass_obj
def top(servers: Servers, as_json: bool) -> int:
    """Watch the tubes: jobs, rates of puts and deletes, who waits, and the age of the job that is next.

    Press 1 to 9 to sort by that column, again to turn the order round, and q to quit.
    """
    if not as_json and not sys.stdout.isatty():
        raise click.ClickException("top needs a terminal, or --json; `gstalk tubes` shows the tubes once")
    watcher = Watcher(servers.uris)
    try:
        watcher.look()
        if all(watcher.failures.get(uri) for uri in servers.uris):
            raise next(iter(watcher.failures.values()))
        if as_json:
            _print_on(watcher, servers)
        else:
            _show_on(watcher)
    except KeyboardInterrupt:  # the usual way to leave
        pass
    finally:
        watcher.close()
    return 0


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


def _print_on(watcher: Watcher, servers: Servers) -> None:
    while True:
        for line in watcher.lines:
            rates = {"puts_per_second": line.puts, "deletes_per_second": line.deletes, "oldest": line.oldest}
            row({**servers.label(line.uri), **fields(line.stats), **rates})
        gevent.sleep(INTERVAL)
        watcher.look()


def _show_on(watcher: Watcher) -> None:
    screen = Screen(watcher)
    # No refreshing thread: it would not know of gevent's hub.
    with _keys() as pressed, Live(screen, console=Console(), screen=True, auto_refresh=False) as live:
        looking: gevent.Greenlet[[], None] | None = None  # beside the keys: a server may take its time
        next_look = time.monotonic() + INTERVAL
        try:
            while True:
                if looking is None and time.monotonic() >= next_look:
                    looking = gevent.spawn(watcher.look)
                for key in pressed(TICK):
                    if key in "qQ":
                        return
                    screen.press(key)
                if looking is not None and looking.ready():
                    looking.get()
                    looking, next_look = None, time.monotonic() + INTERVAL
                live.refresh()
        finally:
            if looking is not None:
                looking.kill()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Read single keys; what is yielded waits for some, at most so many seconds."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            gevent.sleep(seconds)
            return ""

        yield wait
        return
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        try:
            socket.wait_read(fd, timeout=seconds)
        except TimeoutError:
            return ""
        return os.read(fd, 64).decode("ascii", "replace")

    tty.setcbreak(fd)
    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


class Screen:
    """What is on the terminal: a line for each server, the tubes that fit, and the keys."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._sort = COLUMNS[1]
        self._upwards = False

    def press(self, key: str) -> None:
        """Sort by the column of this key, or the other way round."""
        if key in "123456789":
            column = COLUMNS[int(key) - 1]
            self._upwards = not self._upwards if column is self._sort else column.field == "name"
            self._sort = column

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        uris = self._watcher.uris
        several = len(uris) > 1
        heads = [self._server(uri, f"{number} " if several else "") for number, uri in enumerate(uris, 1)]
        lines = sorted(self._watcher.lines, key=self._order, reverse=not self._upwards)
        room = max(console.height - len(heads) - 4, 0)  # two empty lines, the columns' heads, and the foot
        hidden = len(lines) - room + 1 if len(lines) > room else 0
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
        if several:
            table.add_column("at", no_wrap=True)
        for column in COLUMNS:
            style = "bold reverse" if column is self._sort else "bold"
            if column.field == "name":
                table.add_column(column.head, no_wrap=True, header_style=style, ratio=1, min_width=12)
            else:
                table.add_column(column.head, no_wrap=True, header_style=style, justify="right")
        for line in lines[: len(lines) - hidden]:
            server = [str(uris.index(line.uri) + 1)] if several else []
            table.add_row(*server, *(Text(_cell(column, _value(line, column))) for column in COLUMNS))
        ways = ("from z to a", "from a to z") if self._sort.field == "name" else ("most first", "least first")
        foot = f"{self._sort.head}, {ways[self._upwards]}   1-9: sort by that column, again: other way round   q: quit"
        more = [Text(f"and {plural(hidden, 'more tube')}")] if hidden else []
        yield Group(*heads, Text(), table, *more, Text(), _one_line(foot))

    def _order(self, line: Line) -> Any:
        value = _value(line, self._sort)
        return -1 if value is None else value

    def _server(self, uri: str, number: str) -> Text:
        if (failure := self._watcher.failures.get(uri)) is not None:
            return _one_line(f"{number}{failure}", "red")
        stats = self._watcher.server_stats[uri]
        parts = [
            f"{number}{uri}",
            f"beanstalkd {stats.version}",
            f"up {short(stats.uptime or 0)}",
            plural(stats.current_connections or 0, "connection"),
            "draining" if stats.draining else "",
        ]
        return _one_line("  ".join(filter(None, parts)))


def _one_line(text: str, style: str = "") -> Text:
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _value(line: Line, column: Column) -> Any:
    return getattr(line, column.field) if column.field in Line._fields else getattr(line.stats, column.field)


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.field == "oldest":
        return short(value)
    if isinstance(value, float):
        return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
