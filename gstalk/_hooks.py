"""Where messages, errors and events go: to the user's functions, or to the standard logger `gstalk`.

A hook that raises, or gives back a coroutine, is logged and harms nothing. Hooks are never called from the hub: whoever
has something to tell there spawns a greenlet for it, or has `event_later` do so.
"""

from __future__ import annotations

import logging
from contextvars import Context
from typing import Any

import gevent
from gevent import GreenletExit

from gstalk import _forks
from gstalk.config import Config, Event
from gstalk.errors import GstalkError
from gstalk.job import Job
from gstalk.protocol import checks

__all__ = ["ATTRIBUTES", "Hooks"]

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
        generation = _forks.generation()
        try:
            result = hook(*args)
            if result is not None:
                checks.check_returned("a hook", result)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A hook's own gevent.Timeout would else end the keeper or the worker that tells. A child that the hook has
            # forked ends as it likes.
            if (passing or _forks.generation() != generation) and not isinstance(error, Exception):
                raise
            if killable and isinstance(error, GreenletExit):
                raise
            logger.exception("a hook of gstalk's Config raised: %r", hook, extra=_attributes(known or {}))
            return False
        return True


def _attributes(known: dict[str, Any]) -> dict[str, Any]:
    """What is not known is no attribute: a formatter may then have a default of its own."""
    return {name: value for name, value in known.items() if value is not None}
