"""Where messages, errors and events go: to the user's functions, or to the standard logger `gstalk`.

A hook that raises, or gives back a coroutine, is logged and harms nothing. Hooks are never called from the hub: whoever
has something to tell there spawns a greenlet for it, or has `event_later` do so.

`Outcomes` tells of each put, delete, release and bury of a connection. Where nobody listens, a connection has none, and
that is all that it costs.
"""

from __future__ import annotations

import logging
from contextvars import Context, copy_context
from typing import Any

import gevent
from gevent import GreenletExit
from gevent.hub import Hub

from gstalk.config import Config, Event
from gstalk.connection import forks
from gstalk.connection.calls import wait_for
from gstalk.connection.clock import monotonic
from gstalk.errors import BuriedError, GstalkError
from gstalk.job import Job
from gstalk.protocol import checks, commands
from gstalk.protocol.request import Request, Then
from gstalk.traces import keep_last

__all__ = ["ATTRIBUTES", "Hooks", "Outcomes"]

logger = logging.getLogger("gstalk")

#: What a log record may have as attributes, beside its sentence; never a body. docs/logging.md says what they mean.
ATTRIBUTES = ("uri", "tube", "job_id", "attempt", "outcome", "duration")


class Hooks:
    """The hooks of a Config."""

    __slots__ = ("_config", "_telling", "_untold", "listens")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._untold: list[tuple[Context, Event]] = []
        self._telling: gevent.Greenlet[..., Any] | None = None
        self.listens = config.event_func is not None

    def info(self, message: str, **known: Any) -> None:
        """Tell a message. `known`: what `error` takes."""
        if self._config.info_func is None:
            logger.info(message, extra=_attributes(known))
        else:
            self._call(self._config.info_func, message)

    def error(self, error: BaseException, message: str, **known: Any) -> None:
        """Tell of an error.

        Args:
            known: What the message is about, for machines: any of `ATTRIBUTES`. The user's function doesn't get it.
        """
        if self._config.error_func is None:
            # A stack says nothing about an outage, and much about a handler.
            stack = None if isinstance(error, GstalkError) else error
            logger.error("%s: %s", message, error, exc_info=stack, extra=_attributes(known))
        else:
            self._call(self._config.error_func, error, message)

    def given_up(self, job: Job, error: BaseException, **known: Any) -> bool:
        """Call `given_up_func`, in a handler's greenlet; its kill and Ctrl-C pass.

        Args:
            known: What `error` takes.

        Returns:
            Whether it has done its work: it returned, or there is none.
        """
        hook = self._config.given_up_func
        return hook is None or self._call(hook, job, error, killable=True, known=known)

    def event(self, kind: str, *, passing: bool = False, **fields: Any) -> None:
        """Tell of an event. `passing`: in a caller's greenlet, where his own timeout or kill must pass."""
        if self._config.event_func is not None:
            self._call(self._config.event_func, Event(kind=kind, **fields), passing=passing)

    def event_later(self, context: Context, kind: str, **fields: Any) -> None:
        """Tell of an event from the hub; one greenlet does that for all of a read.

        Args:
            context: Whose doing it was, so that a trace knows where it belongs.
        """
        self._untold.append((context, Event(kind=kind, **fields)))
        if len(self._untold) == 1 or self._telling is None or self._telling.ready():  # a signal may have ended it
            self._telling = gevent.spawn(self._tell_untold)

    def _tell_untold(self) -> None:
        untold, self._untold = self._untold, []
        for context, event in untold:
            context.run(self._call, self._config.event_func, event)

    def _call(
        self,
        hook: Any,
        *args: object,
        passing: bool = False,
        killable: bool = False,
        known: dict[str, Any] | None = None,
    ) -> bool:
        """Call a hook; returns whether it returned."""
        generation = forks.generation()
        try:
            result = hook(*args)
            if result is not None:
                checks.check_returned("a hook", result)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            keep_last(error)  # it may be one object that is raised for every event
            # A hook's own gevent.Timeout would else end the keeper or the worker that tells. A child that the hook has
            # forked ends as it likes.
            if (passing or forks.generation() != generation) and not isinstance(error, Exception):
                raise
            if killable and isinstance(error, GreenletExit):
                raise
            logger.exception("a hook of gstalk's Config raised: %r", hook, extra=_attributes(known or {}))
            return False
        return True


def _attributes(known: dict[str, Any]) -> dict[str, Any]:
    """What is not known is no attribute: a formatter may then have a default of its own."""
    return {name: value for name, value in known.items() if value is not None}


class Outcomes:
    """Tells of one connection's commands.

    Args:
        uri: The server.
        hub: The connection's.
        hooks: Told.
    """

    __slots__ = ("_hooks", "_hub", "_uri")

    def __init__(self, uri: str, hub: Hub, hooks: Hooks) -> None:
        self._uri = uri
        self._hub = hub
        self._hooks = hooks

    def wait(self, request: Request, tube: str | None = None) -> Any:
        """Wait for a reply, as the pipeline's `wait` does, and tell of it in the caller's greenlet.

        Args:
            tube: A put's; that of a job is known from its request.
        """
        began = monotonic()
        try:
            result = wait_for(self._hub, request)
        except BaseException as error:
            self.tell(request, tube, began, error)
            raise
        self.tell(request, tube, began, None)
        return result

    def tell(self, request: Request, tube: str | None, began: float, error: BaseException | None) -> None:
        """Tell of a reply that the caller's greenlet has waited for."""
        self._hooks.event(request.command.name, passing=True, **self._fields(request, tube, began, error))

    def later(self, then: Then) -> Then:
        """Make the `then` of a command that nobody waits for: the one given, and to tell, in the caller's context."""
        context = copy_context()
        began = monotonic()

        def tell(request: Request) -> None:
            then(request)
            self._hooks.event_later(context, request.command.name, **self._fields(request, None, began, request.error))

        return tell

    def _fields(self, request: Request, tube: str | None, began: float, error: BaseException | None) -> dict[str, Any]:
        if request.command is not commands.PUT:
            job_id = request.key
            tube = request.subject.tube if isinstance(request.subject, Job) else None
        elif error is None:
            job_id = request.result
        else:
            job_id = error.job_id if isinstance(error, BuriedError) else None
        duration = monotonic() - began
        return {"uri": self._uri, "tube": tube, "job_id": job_id, "exception": error, "duration": duration}
