"""The picture that `gstalk top` shows, made with rich."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from gstalk.cli._output import plural, printable, short
from gstalk.cli._watcher import Line, Watcher

__all__ = ["Screen"]


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
