"""Which servers a command speaks to, what it asks them about their tubes, and what it says of one that is away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click
import gevent
from gevent.pool import Pool

import gstalk
from gstalk.cli._output import complain, exit_code, tell

__all__ = [
    "DEFAULT",
    "TUBE",
    "URI_HELP",
    "Outages",
    "Servers",
    "answers",
    "at_once",
    "take_uris",
    "tube_stats",
    "visit",
]

DEFAULT = "localhost:11300"
IN_FLIGHT = 64
URI_HELP = "The server; also $BEANSTALKD_URI."

T = TypeVar("T")
R = TypeVar("R")


class Servers:
    """The servers named with `--uri` or `$BEANSTALKD_URI`.

    Attributes:
        named: Whether any was.
        uris: Their canonical URIs, or the default one's.
    """

    def __init__(self, uris: tuple[str, ...]) -> None:
        self.named = bool(uris)
        try:
            found = [str(address) for address in gstalk.validate_uris(uris or (DEFAULT,))]
        except gstalk.InvalidArgumentError as error:
            raise click.UsageError(str(error)) from None
        self.uris = list(dict.fromkeys(found))

    @property
    def uri(self) -> str:
        """The server, for a command that speaks to one alone."""
        if len(self.uris) > 1:
            raise click.UsageError("this command takes one --uri")
        return self.uris[0]

    def label(self, uri: str) -> dict[str, str]:
        """What tells the servers' rows apart, where there are several."""
        return {"uri": uri} if len(self.uris) > 1 else {}


class Outages:
    """Tells on standard error of a server's outage once, and of its end: who asks every second would fill a log."""

    def __init__(self) -> None:
        self._down: set[str] = set()

    def note(self, uri: str, error: Exception | None) -> None:
        """Say it, if it is news, that a server has failed, or (`None`) has answered."""
        if error is not None and uri not in self._down:
            self._down.add(uri)
            tell(str(error))
        elif error is None and uri in self._down:
            self._down.remove(uri)
            tell(f"{uri} tells its figures again")


def take_uris(command: click.Command) -> None:
    """Have a command take `--uri` behind it, too."""
    option = click.Option(
        ["--uri"], multiple=True, metavar="URI", help=URI_HELP, callback=_take_uris, expose_value=False
    )
    command.params.append(option)


def _take_uris(context: click.Context, parameter: click.Parameter, uris: tuple[str, ...]) -> None:
    """Those behind the command count beside those before it, and instead of the environment's."""
    if uris:
        root = context.find_root()
        typed = root.get_parameter_source("uris") is click.core.ParameterSource.COMMANDLINE
        context.obj = Servers((*(root.params["uris"] if typed else ()), *uris))


def visit(uris: Iterable[str], action: Callable[[gstalk.Conn], None]) -> int:
    """Do something at each server; one that fails doesn't keep the others from it. Returns the exit code."""
    code = 0
    for uri in uris:
        try:
            with gstalk.dial(uri) as conn:
                action(conn)
        except gstalk.GstalkError as error:
            complain(error)
            code = max(code, exit_code(error))
    return code


def at_once(ask: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Ask many questions, pipelined; the answers come in order, and the first error is raised in its place."""

    def answer(item: T) -> R | Exception:  # an exception that leaves a greenlet is printed
        try:
            return ask(item)
        except Exception as error:
            return error

    for result in Pool(IN_FLIGHT).imap(answer, items, maxsize=IN_FLIGHT):
        if isinstance(result, Exception):
            raise result
        yield result


def answers(ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Ask many questions, pipelined, and wait for all the answers, which are in order; an error ends it.

    As `at_once`, in half the time: a greenlet takes question after question, instead of one being made for each.
    """
    left = iter(range(len(items)))
    found: dict[int, R] = {}
    failed: list[Exception] = []

    def work() -> None:
        try:
            for number in left:
                found[number] = ask(items[number])
                if failed:
                    return
        except Exception as error:  # one that leaves a greenlet is printed
            failed.append(error)

    workers = [gevent.spawn(work) for _ in range(min(IN_FLIGHT, len(items)))]
    try:
        gevent.joinall(workers)
    finally:
        gevent.killall(workers)  # where the wait was interrupted
    if failed:
        raise failed[0]
    return [found[number] for number in range(len(items))]


def tube_stats(conn: gstalk.Conn, tubes: Iterable[str] = ()) -> list[gstalk.TubeStats]:
    """Ask for the statistics of these tubes, or of all; a tube that vanished meanwhile isn't there."""

    def ask(name: str) -> gstalk.TubeStats | None:
        try:
            return conn.stats_tube(name)
        except gstalk.NotFoundError:
            return None
        except gstalk.InvalidArgumentError as error:
            raise gstalk.ProtocolError(f"list-tubes at {conn.uri}: {error}") from None

    names = sorted(set(tubes or conn.list_tubes()))
    return [stats for stats in answers(ask, names) if stats is not None]


class _Tube(click.types.StringParamType):
    name = "tube"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            gstalk.protocol.checks.check_tube(value)
        except gstalk.InvalidArgumentError as error:
            self.fail(str(error), param, context)
        return value

    def shell_complete(
        self, context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The tubes that are there."""
        try:
            servers = context.obj or Servers(context.find_root().params.get("uris") or ())
            with gstalk.dial(servers.uris[0], conn_timeout=1) as conn:
                names = conn.list_tubes()
        except (gstalk.GstalkError, click.ClickException):
            return []
        return [click.shell_completion.CompletionItem(name) for name in names if name.startswith(incomplete)]


TUBE = _Tube()
