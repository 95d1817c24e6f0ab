"""`gstalk serve`: the embedded server."""

from __future__ import annotations

import signal

import click
import gevent
from gevent.event import Event

from gstalk.testing import Server

__all__ = ["serve"]


@click.command()
@click.option("--listen", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=11300, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def serve(listen: str, port: int) -> None:
    """Run the embedded server, for development and tests: jobs are kept in memory alone."""
    over = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, over.set)
    try:
        server = Server(listen, port)
        server.start()
    except OSError as error:
        raise click.ClickException(f"can't listen on {listen}:{port}: {error.strerror}") from None
    try:
        click.echo(server.uri)
        over.wait()
    finally:
        server.stop()
