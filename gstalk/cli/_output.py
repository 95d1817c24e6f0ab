"""What commands say: the result on standard output, all else on standard error, nothing unprintable on a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import click
import gevent

import gstalk
from gstalk.cli._lines import dumps

__all__ = [
    "complain",
    "confirm",
    "exit_code",
    "fields",
    "listed",
    "plural",
    "printable",
    "progress",
    "report",
    "row",
    "short",
    "table",
    "tell",
    "tell_reading",
]

REFRESH = 0.1  # seconds between two pictures of a progress bar


def complain(message: object) -> None:
    """Say on standard error, in one sentence, what went wrong."""
    print(f"gstalk: {printable(str(message))}", file=sys.stderr)


def tell(text: str) -> None:
    """Say something, in as many lines, on standard error; from a signal handler too, which may not use its buffer.

    What can't be said, since nobody reads it any more, is dropped: it is no reason to end.
    """
    data = printable(f"gstalk: {text}\n", keep="\n").encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def tell_reading(source: BinaryIO, what: str) -> None:
    """Say to a person that a terminal is read: one who forgot the body would wait for us, and we for him."""
    if source.isatty():
        tell(f"reading {what} from standard input; Ctrl-D ends it")


def exit_code(error: gstalk.GstalkError) -> int:
    """What the program ends with: no connection, wrong usage, or refused."""
    return 3 if isinstance(error, gstalk.DisconnectedError) else 2 if isinstance(error, ValueError) else 1


def printable(text: str, keep: str = "") -> str:
    """Escape what could move a terminal's cursor, change its colours, or hide: all that isn't printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def short(seconds: int) -> str:
    """Seconds in their two largest units."""
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02}{smaller}"
    return f"{seconds}s"


def fields(stats: Any) -> dict[str, Any]:
    """The fields of a stats dataclass; what a newer server adds stands among them."""
    found = dataclasses.asdict(stats)
    return {**found.pop("extra"), **found}


def row(values: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    click.echo(dumps(values))


def report(count: int, done: str, as_json: bool) -> None:
    """Print on how many jobs a command has acted."""
    if as_json:
        row({"jobs": count})
    else:
        click.echo(f"{plural(count, 'job')} {done}")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns: numbers to the right, all else to the left; no lines and no colours, so that pipes are clean."""
    shown = [[printable(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in each] for each in rows]
    right = [bool(rows) and isinstance(rows[0][column], int | float) for column in range(len(heads))]
    widths = [max(map(len, column)) for column in zip(heads, *shown, strict=True)]
    for each in (heads, *shown):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(each, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def confirm(question: str, yes: bool) -> None:
    """Have what destroys confirmed: with `--yes`, or by a person on a terminal."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.ClickException(f"refused to {question}: nobody to ask here; say --yes")
    gevent.sleep(0)  # a signal that came a moment ago strikes here, not when the question is answered
    try:
        agreed = click.confirm(f"{question[0].upper()}{question[1:]}?", err=True)
    except click.Abort:
        click.echo(err=True)  # the line of the question ends
        raise
    if not agreed:
        raise click.ClickException("nothing was done")


@contextlib.contextmanager
def progress(what: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how far it is: a bar on standard error, if that is a terminal, else nothing.

    Args:
        total: Of how many; `None` if nobody knows.
        shown: `False` where the result goes to the same terminal.

    Returns:
        What to call with the number of jobs that have been done since the last call.
    """
    if not (shown and sys.stderr.isatty() and _has_rich()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # No refreshing thread: it would not know of gevent's hub.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        last = 0.0

        def advance(count: int) -> None:
            nonlocal last
            now = time.monotonic()
            refresh = now - last > REFRESH
            bar.update(task, advance=count, refresh=refresh)
            if refresh:
                last = now

        try:
            yield advance
        finally:
            bar.refresh()


def _has_rich() -> bool:
    """A bar is a comfort: without rich, which a worker's machine doesn't need, there is none."""
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True
