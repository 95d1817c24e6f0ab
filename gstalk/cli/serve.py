"""`gstalk serve`: the embedded server, with the flags of beanstalkd that make sense for it."""

from __future__ import annotations

import signal

import click
import gevent
from gevent.event import Event

from gstalk.cli._listen import Listen, Place, join
from gstalk.cli._output import tell
from gstalk.testing import Server

__all__ = ["serve"]

LARGEST = 1 << 30  # bytes of a job: as many as beanstalkd allows
PORT = 11300


@click.command()
@click.option("-l", "--listen", metavar="ADDRESS", type=Listen(unix=True), default="127.0.0.1", show_default=True,
              help="Where: HOST, HOST:PORT, PORT, :PORT for all addresses, or unix:PATH.")  # fmt: skip
@click.option("-p", "--port", type=click.IntRange(0, 65535), show_default=str(PORT),
              help="The port, if --listen has none; 0 takes a free one.")  # fmt: skip
@click.option("-z", "--max-job-size", metavar="BYTES", default=65535, show_default=True,
              type=click.IntRange(0, LARGEST), help="The largest job that is taken.")  # fmt: skip
def serve(listen: Place, port: int | None, max_job_size: int) -> None:
    """Run the embedded server, for development and tests: jobs are kept in memory alone.

    -l, -p and -z are those of beanstalkd. SIGUSR1 drains: from then on no new jobs are taken. SIGTERM and SIGINT
    (Ctrl-C) end it.
    """
    over = Event()
    if listen.port is not None and port is not None:
        raise click.UsageError("--listen has a port already: leave --port out")
    host, path = listen.host, listen.path
    port = next(each for each in (listen.port, port, PORT) if each is not None)
    try:
        server = Server(host, port, unix=path or False, max_job_size=max_job_size)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, over.set)
        gevent.signal_handler(signal.SIGUSR1, _drain, server)
        server.start()
    except OSError as error:
        where = path or join(host, port)
        raise click.ClickException(f"can't listen on {where}: {error.strerror or error}") from None
    try:
        click.echo(server.uri)
        over.wait()
    finally:
        server.stop()


def _drain(server: Server) -> None:
    server.drain()
    tell("draining: no new jobs are taken")
