"""`gstalk top`: the tubes, live."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

import click
import gevent
from gevent import socket

from gstalk.cli._output import fields, row
from gstalk.cli._servers import Outages, Servers
from gstalk.cli._watcher import Watcher

__all__ = ["top"]

INTERVAL = 1.0  # seconds between two looks
TICK = 0.1  # seconds until a look that has come is shown

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON every second, one object for each tube.")


@click.command()
@as_json
@click.pass_obj
def top(servers: Servers, as_json: bool) -> int:
    """Watch the tubes: jobs, rates of puts and deletes, who waits, and the age of the job that is next.

    Press 1 to 9 to sort by that column, again to turn the order round, and q to quit.
    """
    if not as_json and not sys.stdout.isatty():
        raise click.ClickException("top needs a terminal, or --json; `gstalk tubes` shows the tubes once")
    if not as_json:
        _need_rich()
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


def _print_on(watcher: Watcher, servers: Servers) -> None:
    outages = Outages()  # else a server that is away would look like one without jobs
    while True:
        for uri in servers.uris:
            outages.note(uri, watcher.failures.get(uri))
        for line in watcher.lines:
            rates = {"puts_per_second": line.puts, "deletes_per_second": line.deletes, "oldest": line.oldest}
            row({**servers.label(line.uri), **fields(line.stats), **rates})
        gevent.sleep(INTERVAL)
        watcher.look()


def _need_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError:
        raise click.ClickException("top needs rich: pip install 'gstalk[cli]'") from None


def _show_on(watcher: Watcher) -> None:
    from rich.console import Console
    from rich.live import Live

    from gstalk.cli._screen import Screen

    screen = Screen(watcher)
    # No refreshing thread: it would not know of gevent's hub.
    live = Live(screen, console=Console(), screen=True, auto_refresh=False)
    looking: gevent.Greenlet[[], None] | None = None  # beside the keys: a server may take its time
    next_look = time.monotonic() + INTERVAL
    with _keys() as pressed:
        try:
            live.start(refresh=True)  # not by `with`: a Ctrl-C at the first picture would leave the terminal as it is
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
            live.stop()
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
