"""`gstalk serve`: the embedded server, with the flags of beanstalkd that make sense for it."""

from __future__ import annotations

import signal

import click
import gevent
from gevent.event import Event

from gstalk.cli._output import tell
from gstalk.testing import Server

__all__ = ["serve"]

LARGEST = 1 << 30  # bytes of a job: as many as beanstalkd allows
UNIX = "unix:"


@click.command()
@click.option("-l", "--listen", metavar="ADDRESS", default="127.0.0.1", show_default=True,
              help="The address to listen on, or unix:PATH.")  # fmt: skip
@click.option(
    "-p", "--port", default=11300, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("-z", "--max-job-size", metavar="BYTES", default=65535, show_default=True,
              type=click.IntRange(0, LARGEST), help="The largest job that is taken.")  # fmt: skip
def serve(listen: str, port: int, max_job_size: int) -> None:
    """Run the embedded server, for development and tests: jobs are kept in memory alone.

    -l, -p and -z are those of beanstalkd. SIGUSR1 drains: from then on no new jobs are taken. SIGTERM and SIGINT
    (Ctrl-C) end it.
    """
    over = Event()
    path = listen.removeprefix(UNIX) if listen.startswith(UNIX) else ""
    if listen == UNIX:
        raise click.BadParameter("unix: needs a path behind it", param_hint="--listen")
    try:
        server = Server(listen, port, unix=path or False, max_job_size=max_job_size)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, over.set)
        gevent.signal_handler(signal.SIGUSR1, _drain, server)
        server.start()
    except OSError as error:
        where = path or f"{listen}:{port}"
        raise click.ClickException(f"can't listen on {where}: {error.strerror or error}") from None
    try:
        click.echo(server.uri)
        over.wait()
    finally:
        server.stop()


def _drain(server: Server) -> None:
    server.drain()
    tell("draining: no new jobs are taken")
