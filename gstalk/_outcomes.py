"""Who listens to events learns from here what became of each put, delete, release and bury of a connection.

Where nobody listens, a connection has no `Outcomes`, and that is all that it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from gevent.hub import Hub

from gstalk._calls import wait_for
from gstalk._clock import monotonic
from gstalk._hooks import Hooks
from gstalk.errors import BuriedError
from gstalk.job import Job
from gstalk.protocol import commands
from gstalk.protocol.session import Slot

__all__ = ["Outcomes"]


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

    def wait(self, slot: Slot, tube: str | None = None) -> Any:
        """Wait for a reply, as the pipeline's `wait` does, and tell of it in the caller's greenlet.

        Args:
            tube: A put's; that of a job is known from its slot.
        """
        began = monotonic()
        try:
            result = wait_for(self._hub, slot)
        except BaseException as error:
            self.tell(slot, tube, began, error)
            raise
        self.tell(slot, tube, began, None)
        return result

    def tell(self, slot: Slot, tube: str | None, began: float, error: BaseException | None) -> None:
        """Tell of a reply that the caller's greenlet has waited for."""
        self._hooks.event(slot.command.name, passing=True, **self._fields(slot, tube, began, error))

    def later(self, duty: Callable[[Slot], None]) -> Callable[[Slot], None]:
        """Make a duty for a command that nobody waits for: as the one given, and then tells in the caller's context."""
        context = copy_context()
        began = monotonic()

        def tell(slot: Slot) -> None:
            duty(slot)
            self._hooks.event_later(context, slot.command.name, **self._fields(slot, None, began, slot.error))

        return tell

    def _fields(self, slot: Slot, tube: str | None, began: float, error: BaseException | None) -> dict[str, Any]:
        if slot.command is not commands.PUT:
            job_id = slot.key
            tube = slot.extra.tube if isinstance(slot.extra, Job) else None
        elif error is None:
            job_id = slot.result
        else:
            job_id = error.job_id if isinstance(error, BuriedError) else None
        duration = monotonic() - began
        return {"uri": self._uri, "tube": tube, "job_id": job_id, "exception": error, "duration": duration}
