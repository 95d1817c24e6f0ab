"""The HTTP server of `gstalk exporter`: `/metrics`, and `/healthz`.

Whoever asks for `/metrics` has the servers looked at; whoever asks while that goes on gets the same answer. So many
scrapers cost no more than one, and the servers are never asked twice at the same time. A connection serves one request
and has a time limit, so that slow clients are not kept.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from gstalk.cli._exposition import CONTENT_TYPE, Exposition

__all__ = ["Exporter"]

PATIENCE = 30.0  # seconds that a connection may take, from its first byte to its last
CONNECTIONS = 100  # at once; more wait in the listening socket
LAST_WORDS = 2.0  # seconds that requests get to be answered after a signal

PATHS = ("/metrics", "/healthz")
TEXT = "text/plain; charset=utf-8"


class _Handler(WSGIHandler):
    """Serves a connection, for as long as it may take."""

    ignored_socket_errors = (*WSGIHandler.ignored_socket_errors, errno.EBADF)  # what `_cut` brings, and no news

    def handle(self) -> None:
        cut = gevent.spawn_later(PATIENCE, self._cut)  # no Timeout: pywsgi would tell of it as of a fault of ours
        try:
            super().handle()
        finally:
            cut.kill(block=False)

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Exporter:
    """Serves what looks at the servers.

    Args:
        look: Looks at them.
        listen: Host and port; port 0 takes a free one.
    """

    def __init__(self, look: Callable[[], Exposition], listen: tuple[str, int]) -> None:
        self._look = look
        self._looking: gevent.Greenlet[[], Exposition] | None = None
        self._listen = listen

    def start(self) -> str:
        """Listen; returns the URL of the metrics. Raises `OSError`."""
        listener = _listener(*self._listen)
        self._server = WSGIServer(listener, self._answer, log=None, handler_class=_Handler, spawn=Pool(CONNECTIONS))
        self._server.start()
        host = str(self._server.server_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}/metrics"

    def stop(self) -> None:
        """Answer what was asked, for a moment, and close."""
        self._server.stop(LAST_WORDS)
        if self._looking is not None:
            self._looking.kill()

    def _answer(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environment["REQUEST_METHOD"]
        headers = {"Connection": "close", "Content-Type": TEXT}
        if environment["PATH_INFO"] not in PATHS:
            status, body = "404 Not Found", f"not found: here are {' and '.join(PATHS)}\n".encode()
        elif method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET or HEAD\n"
            headers["Allow"] = "GET, HEAD"
        elif environment["PATH_INFO"] == "/healthz":
            status, body = "200 OK", b"ok\n"
        else:
            compressed = "gzip" in environment.get("HTTP_ACCEPT_ENCODING", "")
            seen = self._seen()
            status, body = "200 OK", seen.compressed() if compressed else seen.text()
            headers |= {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
            if compressed:
                headers["Content-Encoding"] = "gzip"
        start(status, [*headers.items(), ("Content-Length", str(len(body)))])
        return [b"" if method == "HEAD" else body]

    def _seen(self) -> Exposition:
        """What the servers tell now, or told whoever asked a moment ago; in a greenlet which no client's end ends."""
        if self._looking is None:
            self._looking = gevent.spawn(self._look)
            self._looking.rawlink(self._looked)
        return self._looking.get()

    def _looked(self, _: object) -> None:
        self._looking = None


def _listener(host: str, port: int) -> socket.socket:
    """Make a listening socket: gevent's own would keep the address in its error's text, and the socket open."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(CONNECTIONS)
    except BaseException:
        sock.close()
        raise
    return sock
