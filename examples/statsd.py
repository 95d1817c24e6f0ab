"""Counts and times to a StatsD server, as a `Config.event_func`.

Run: python examples/statsd.py [URI [HOST [PORT]]]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from gevent import socket

import gstalk


def statsd(sock: socket.socket, host: str, port: int) -> Callable[[gstalk.Event], None]:
    """Make an `event_func`: a counter and a timer for each kind of event, and a gauge of jobs in flight."""

    def tell(event: gstalk.Event) -> None:
        name = f"gstalk.{event.kind}" if event.exception is None else f"gstalk.{event.kind}.failed"
        lines = [f"{name}:1|c"]
        if event.duration is not None:
            lines.append(f"{name}:{event.duration * 1000:.3f}|ms")
        if event.kind in ("handling", "handled"):
            lines.append(f"gstalk.in_flight:{'+1' if event.kind == 'handling' else '-1'}|g")
        sock.sendto("\n".join(lines).encode(), (host, port))

    return tell


def main(uri: str = "localhost:11300", host: str = "127.0.0.1", port: str | int = 8125) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        config = gstalk.Config(event_func=statsd(sock, host, int(port)), auto_delete=True)
        with gstalk.Producer(uri, config) as producer:
            producer.put("statsd", b"to be counted")
        consumer = gstalk.Consumer(uri, "statsd", config)
        consumer.receive(lambda job: consumer.stop())
    print(f"told StatsD at {host}:{port} of a put and of its job")


if __name__ == "__main__":
    main(*sys.argv[1:])
