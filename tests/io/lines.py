"""A connection to a played server, without a Conn around it."""

from __future__ import annotations

from gstalk.config import Config
from gstalk.connection.connection import Connection
from gstalk.protocol import commands
from gstalk.uri import parse_uri
from tests.servers import Played

__all__ = ["Line"]


class Line:
    """A connection to a played server; what has been sent on it since it was made."""

    def __init__(self, played: Played, config: Config, tubes: tuple[str, ...] = ()) -> None:
        self.played = played
        self.connection = Connection(parse_uri(played.uri), config, tubes)
        self._dialed = len(played.lines)

    @property
    def sent(self) -> list[bytes]:
        """What the server has read; a command whose reply was waited for is always among it."""
        return self.played.lines[self._dialed :]

    def settle(self) -> list[bytes]:
        """Have all that was sent answered; returns it."""
        self.connection.call(commands.LIST_TUBE_USED, commands.plain(commands.LIST_TUBE_USED))
        return [line for line in self.sent if line != b"list-tube-used"]
