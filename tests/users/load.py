"""An HTTP load: clients that post over connections kept alive, each as fast as it is answered."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from time import monotonic

import gevent
from gevent import socket


class Load:
    """Clients that post bodies of their own to `path`, and what became of each.

    Attributes:
        accepted: From each body that was answered with 201 to its job's id.
        unanswered: Bodies whose connection ended without an answer.
        refused: How many connections were not accepted.
        others: Answers other than 201, and how often each came.
        times: Seconds to each answer.
    """

    def __init__(self, port: int, path: str, clients: int) -> None:
        self.accepted: dict[bytes, int] = {}
        self.unanswered: set[bytes] = set()
        self.refused = 0
        self.others: Counter[bytes] = Counter()
        self.times: list[float] = []
        self.began = monotonic()
        self._stopped = False
        self._place = ("127.0.0.1", port)
        self._path = path.encode()
        self._clients = [gevent.spawn(self._post, number) for number in range(clients)]

    def stop(self) -> None:
        """Let each client have its last answer."""
        self._stopped = True
        gevent.joinall(self._clients, raise_error=True)

    def figures(self) -> dict[str, object]:
        times = sorted(self.times)
        return {
            "accepted": len(times),
            "a second": round(len(times) / (monotonic() - self.began)),
            "median ms": round(1000 * times[len(times) // 2], 1),
            "p99 ms": round(1000 * times[len(times) * 99 // 100], 1),
            "slowest ms": round(1000 * times[-1]),
            "unanswered": len(self.unanswered),
        }

    def _post(self, client: int) -> None:
        sock = None
        for number in itertools.count():
            if self._stopped:
                break
            body = b"%d-%d" % (client, number)
            if sock is None:
                try:
                    sock = socket.create_connection(self._place)
                except ConnectionError:
                    self.refused += 1
                    gevent.sleep(0.01)
                    continue
            began = monotonic()
            try:
                sock.sendall(
                    b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (self._path, len(body), body)
                )
                head, content = self._answer(sock)
            except (ConnectionError, EOFError):
                self.unanswered.add(body)
                head = b"connection: close"
            else:
                if head.startswith(b"http/1.1 201 "):
                    self.times.append(monotonic() - began)
                    self.accepted[body] = json.loads(content)["id"]
                else:
                    self.others[head.partition(b"\r\n")[0] + b" " + content] += 1
            if b"connection: close" in head:
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    def _answer(self, sock: socket.socket) -> tuple[bytes, bytes]:
        """An answer's head, in lower case, and its body."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock)
        head, _, content = data.partition(b"\r\n\r\n")
        head = head.lower()
        size = int(head.partition(b"content-length:")[2].split(None, 1)[0])
        while len(content) < size:
            content += self._more(sock)
        return head, content

    def _more(self, sock: socket.socket) -> bytes:
        data: bytes = sock.recv(65536)
        if not data:
            raise EOFError
        return data
