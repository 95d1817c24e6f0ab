"""Addresses to listen on, as a person types them: one parser for all commands that listen."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import click

from gstalk.uri import is_ipv6

__all__ = ["Listen", "Place", "join"]

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
FORMS = "HOST, HOST:PORT, PORT or :PORT"
UNIX = "unix:"

_SHAPE = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:*\[\]]*))(?::(?P<port>[0-9]{1,5}))?")


class Place(NamedTuple):
    """A host and a port, which is `None` where none was typed; or the path of a unix socket."""

    host: str = ""
    port: int | None = None
    path: str = ""


class Listen(click.types.StringParamType):
    """`HOST`, `HOST:PORT`, `PORT` on 127.0.0.1 alone, `:PORT` on all IPv4 addresses.

    An IPv6 address with a port stands in brackets, as in a URI; alone it needs none.

    Args:
        unix: Whether `unix:PATH` may be typed, too.
    """

    name = "address"

    def __init__(self, unix: bool = False) -> None:
        self._unix = unix

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self._place(str(value))
        except ValueError as error:
            self.fail(str(error), param, context)

    def _place(self, text: str) -> Place:
        if text.startswith(UNIX):
            return self._socket(text)
        if is_ipv6(text):
            host, _, port = text.rpartition(":")
            if port.isdigit() and is_ipv6(host):
                raise ValueError(f"{text!r} may mean two things: write [{host}]:{port}, or [{text}]")
            return Place(text)
        found = _SHAPE.fullmatch(text)
        if found is None or not text or (found["six"] is not None and not is_ipv6(found["six"])):
            raise ValueError(f"{text!r} is no {FORMS}")
        if found["host"] and found["port"] is None and _is_number(found["host"]):
            return Place(LOOPBACK, _port(text))
        host = found["six"] or found["host"] or EVERYWHERE
        return Place(host, None if found["port"] is None else _port(found["port"]))

    def _socket(self, text: str) -> Place:
        if not self._unix:
            raise ValueError(f"{text!r} is no {FORMS}")
        if text == UNIX:
            raise ValueError("unix: needs a path behind it")
        return Place(path=text.removeprefix(UNIX))


def join(host: str, port: int) -> str:
    """An address as it is shown."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(text: str) -> int:
    if int(text) > 65535:
        raise ValueError(f"port {text} is larger than 65535")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
