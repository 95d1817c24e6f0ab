"""`gstalk metrics` and `gstalk exporter`: the servers' and tubes' figures as Prometheus reads them."""

from __future__ import annotations

import signal
import sys

import click
import gevent
from gevent.event import Event

from gstalk.cli._durations import Duration
from gstalk.cli._figures import look
from gstalk.cli._listen import Listen, Place, join
from gstalk.cli._output import complain
from gstalk.cli._servers import TUBE, Outages, Servers

__all__ = ["exporter", "metrics"]

PORT = 9126  # where `exporter` listens

of_tubes = click.option("--tube", "tubes", multiple=True, type=TUBE, help="A tube; may be repeated. Default: all.")
timeout = click.option("--timeout", metavar="SECONDS", type=Duration(0, min_open=True), default=9.0,
                       show_default=True, help="How long a server may take; then it counts as down.")  # fmt: skip


@click.command()
@of_tubes
@timeout
@click.pass_obj
def metrics(servers: Servers, tubes: tuple[str, ...], timeout: float) -> None:
    """Print the servers' and tubes' figures once, as Prometheus reads them.

    A server that is down is a metric (beanstalkd_up is 0), and said on standard error; it is no failure.
    """
    _need_prometheus_client()
    from gstalk.cli._exposition import Exposition

    seen = look(servers.uris, tubes, timeout)
    for each in seen:
        if each.error is not None:
            complain(each.error)
    sys.stdout.buffer.write(Exposition(seen).text())


@click.command()
@click.option("--listen", metavar="ADDRESS", type=Listen(), default=f"127.0.0.1:{PORT}", show_default=True,
              help="Where to serve /metrics and /healthz: HOST, HOST:PORT, PORT, or :PORT for all addresses; "
                   "port 0 takes a free one.")  # fmt: skip
@of_tubes
@timeout
@click.pass_obj
def exporter(servers: Servers, listen: Place, tubes: tuple[str, ...], timeout: float) -> None:
    """Serve the servers' and tubes' figures over HTTP, for Prometheus.

    The servers are asked when somebody asks for /metrics. One that is down is a metric (beanstalkd_up is 0); /healthz
    is about this process alone. It prints its URL, and runs until SIGTERM or Ctrl-C.
    """
    _need_prometheus_client()
    from gstalk.cli._exporter import Exporter
    from gstalk.cli._exposition import Exposition

    outages = Outages()

    def see() -> Exposition:
        seen = look(servers.uris, tubes, timeout)
        for each in seen:
            outages.note(each.uri, each.error)
        return Exposition(seen)

    over = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, over.set)
    host, port = listen.host, PORT if listen.port is None else listen.port
    serving = Exporter(see, (host, port))
    try:
        url = serving.start()
    except OSError as error:
        why = str(error.strerror or error).lower()
        raise click.ClickException(f"can't listen on {join(host, port)}: {why}") from None
    try:
        click.echo(url)
        over.wait()
    finally:
        serving.stop()


def _need_prometheus_client() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise click.ClickException("this needs prometheus_client: pip install 'gstalk[metrics]'") from None
