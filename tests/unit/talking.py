"""The embedded server without a socket: clients that are fed and read by hand, and a clock that the test moves."""

from __future__ import annotations

from gstalk.testing.engine import Engine
from gstalk.testing.wire import Client

__all__ = ["Talk"]


class Talk:
    """An engine with clients that are fed and read by hand."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.now = 0.0

    def client(self) -> Client:
        return Client(self.engine)

    def say(self, client: Client, data: bytes) -> bytes:
        client.feed(data, self.now)
        return self.heard(client)

    def heard(self, client: Client) -> bytes:
        out = bytes(client.out)
        client.out.clear()
        return out

    def at(self, now: float) -> None:
        self.now = now
        self.engine.tick(now)

    def stats(self, client: Client, command: bytes) -> dict[str, str]:
        lines = self.say(client, command + b"\r\n").decode().splitlines()
        return dict(line.split(": ") for line in lines if ": " in line)
