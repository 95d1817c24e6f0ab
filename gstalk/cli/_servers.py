"""Which servers a command speaks to."""

from __future__ import annotations

import click

import gstalk

__all__ = ["DEFAULT", "Servers"]

DEFAULT = "localhost:11300"


class Servers:
    """The servers named with `--uri` or `$BEANSTALKD_URI`.

    Attributes:
        named: Whether any was.
        uris: Their canonical URIs, or the default one's.
    """

    def __init__(self, uris: tuple[str, ...]) -> None:
        self.named = bool(uris)
        try:
            self.uris = [str(address) for address in gstalk.validate_uris(uris or (DEFAULT,))]
        except gstalk.InvalidArgumentError as error:
            raise click.UsageError(str(error)) from None

    @property
    def uri(self) -> str:
        """The server, for a command that speaks to one alone."""
        if len(self.uris) > 1:
            raise click.UsageError("this command takes one --uri")
        return self.uris[0]
