"""What greenlets wait for: a request is a command in flight, and owns its outcome. No socket, no clock, nothing waits.

A request's life:

    open        in the order of its `Stream`; `result` is PENDING, `error` is None
    answered    taken out; `result` or `error` is set, then `then` is called, and whoever waits is woken
    failed      the connection ended first: `error` says why and, in `sent`, whether the server may have acted

Nobody takes a request out of the middle. A caller who gives up leaves his where it is: the reply is read when it comes,
`then` (a job is settled, a reservation that nobody waits for goes back) is called all the same, and nobody is woken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gstalk.errors import DisconnectedError
    from gstalk.protocol.commands import Command

__all__ = ["PENDING", "Outcome", "PutRequest", "Request", "ReserveRequest", "Then", "TwoStepRequest", "lost"]

PENDING: Any = type("Pending", (), {"__repr__": lambda self: "PENDING"})()


class Outcome:
    """Something that a greenlet waits for: a `result` or an `error`, and the greenlet, in `waiter`."""

    __slots__ = ("error", "result", "waiter")

    def __init__(self) -> None:
        self.result: Any = PENDING
        self.error: BaseException | None = None
        self.waiter: Any = None

    @property
    def is_settled(self) -> bool:
        return self.result is not PENDING or self.error is not None

    def succeed(self, result: object = None) -> None:
        self.result = result

    def fail(self, error: BaseException) -> None:
        """It ends with this error, also where there was another one, or a result, that nobody has been told yet."""
        self.error = error

    def take_error(self) -> BaseException:
        """Hand the error over to the one who raises it: kept here, it would hold the frames that hold this object."""
        error = self.error
        assert error is not None
        self.result = self.error = None
        return error


class Request(Outcome):
    """A command in flight.

    Args:
        command: Which command this is, and so which replies it may have.
        uri: The server's; for messages.
        key: The job id or the tube (as bytes) that the reply must echo, or that messages name.
        then: Called with the request when it is answered or failed, whoever still waits; it must not switch.
        subject: The `Job` or the tube that the command acts on, for `then`.

    Attributes:
        end: Where its last byte stands in the stream of all that was sent; until it is appended, in what goes with it.
        patience: Seconds that the server may take for its reply, on top of what any reply may take.
        deadline: The moment at which its caller has to be told something; `None`: there is none.
        second: The request that is sent when this one is answered, if they are two steps of one.
    """

    __slots__ = ("command", "end", "key", "subject", "then", "uri")
    # Not fields of each: few requests need them, and making one is a good part of what a put costs.
    patience: float = 0.0
    deadline: float | None = None
    second: Request | None = None

    def __init__(
        self, command: Command, uri: str, key: Any = None, then: Then | None = None, subject: Any = None
    ) -> None:
        # Not Outcome.__init__, for that call alone would cost a tenth of a put's time.
        self.result = PENDING
        self.error = None
        self.waiter = None
        self.command = command
        self.uri = uri
        self.key = key
        self.then = then
        self.subject = subject
        self.end = 0

    def __str__(self) -> str:
        key = self.key.decode("ascii") if isinstance(self.key, bytes) else self.key
        what = self.command.name if key is None else f"{self.command.name} {key}"
        return f"{what} at {self.uri}"


Then = Callable[[Any], None]  # called with a Request


class PutRequest(Request):
    """A put that has to be answered by a `deadline`, or whose start, `began`, is to be told."""

    __slots__ = ("began", "deadline")

    def __init__(self, command: Command, uri: str, then: Then | None, deadline: float | None, began: float) -> None:
        self.result = PENDING  # as in Request, without a call
        self.error = None
        self.waiter = None
        self.command = command
        self.uri = uri
        self.key = None
        self.then = then
        self.subject = None
        self.end = 0
        self.deadline = deadline
        self.began = began


class ReserveRequest(Request):
    """A reserve. `got` is called when `then` has made a `Job` of the reply; `patience` is how long it waits."""

    __slots__ = ("got", "patience")
    got: Callable[[Request], None]


class TwoStepRequest(Request):
    """The first step of two; `second` is the other one."""

    __slots__ = ("second",)


def lost(request: Request, kind: type[DisconnectedError], why: str, sent: int) -> DisconnectedError:
    """Build the error of a request whose connection ended; `sent` is how much of the stream the kernel took."""
    if request.end > sent:
        return kind(f"{request}: {why}; it was not sent", "no")
    return kind(f"{request}: {why}; the server may have acted", "maybe")
