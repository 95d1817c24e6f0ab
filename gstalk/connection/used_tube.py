"""The tube in use, and what stands behind a `use` that failed: commands that hit another tube, which is no success.

A put among them is stored, or buried, where nobody looks for it, so it is deleted again.
"""

from __future__ import annotations

from gstalk.connection.pipeline import Pipeline
from gstalk.errors import DisconnectedError, ProtocolError
from gstalk.protocol import commands
from gstalk.protocol.request import Request, Then
from gstalk.traces import bare

__all__ = ["has_changed"]


def has_changed(pipe: Pipeline, use: Request) -> bool:
    """A `use` was answered: have the commands behind one that failed fail, too.

    Returns:
        Whether nobody knows the tube in use now: it failed, and no other `use` stands behind it.
    """
    error = use.error
    if isinstance(error, ProtocolError):  # so has the command that it was said for: who sent that is told the same
        if len(pipe.requests) > 1 and pipe.requests[0] is use and pipe.requests[1].command.uses:
            pipe.requests[1].fail(bare(error))
        return False
    if error is None or isinstance(error, DisconnectedError):
        return False
    for request in pipe.requests:
        if request.command is commands.USE:
            return False
        if request.command.uses:
            request.then = _InWrongTube(pipe, error, request.then)
    return True


class _InWrongTube:
    """The `then` of a command that has acted on another tube than it was meant for."""

    def __init__(self, pipe: Pipeline, error: BaseException, then: Then | None) -> None:
        self._pipe = pipe
        self._error = error
        self._then = then

    def __call__(self, request: Request) -> None:
        # By the reply, also where its caller was told earlier that it is late; else a BuriedError has the id.
        stored = request.result if isinstance(request.result, int) else getattr(request.error, "job_id", None)
        if request.command is commands.PUT and stored is not None:
            self._pipe.append(commands.by_id(commands.DELETE, stored), self._pipe.request(commands.DELETE, stored))
        if request.error is None or stored is not None:
            request.fail(bare(self._error))
        if self._then is not None:
            self._then(request)
