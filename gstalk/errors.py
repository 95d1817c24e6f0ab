"""Every exception that gstalk raises, and the two that handlers raise to it.

The tree tells a caller what he may do next: an `InvalidArgumentError` sent nothing, after a `ServerError` the
connection is in step, and a `DisconnectedError` says in `sent` whether the server may have acted.
Fields are stored and the sentence is built by whoever raises; all of them pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

__all__ = [
    "BadFormatError",
    "BuriedError",
    "Bury",
    "CommandTimeoutError",
    "ConnectError",
    "ConnectionClosedError",
    "ConnectionLostError",
    "DeadlineSoonError",
    "DisconnectedError",
    "DrainingError",
    "ExpectedCrlfError",
    "GstalkError",
    "InternalError",
    "InvalidArgumentError",
    "JobFinishedError",
    "JobLostError",
    "JobNotFinishedError",
    "JobTooBigError",
    "NotFoundError",
    "NotIgnoredError",
    "OutOfMemoryError",
    "ProtocolError",
    "PutManyError",
    "PutTimeoutError",
    "RetriesExhaustedError",
    "Retry",
    "Sent",
    "ServerError",
    "UnknownCommandError",
    "WrongHubError",
]

Sent = Literal["no", "maybe"]


def _remake(cls: type[BaseException], args: tuple[object, ...], fields: dict[str, Any]) -> BaseException:
    """Make an exception again without its constructor, whatever arguments that has; pickle calls it."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class _Picklable(BaseException):
    # BaseException's own way calls the class with `args`, which fails for every constructor that takes more.
    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[object, ...]]:
        return _remake, (type(self), self.args, self.__dict__)


class GstalkError(_Picklable, Exception):
    """The base of all errors of gstalk."""


class InvalidArgumentError(GstalkError, ValueError):
    """An argument is out of range or malformed; it was refused before a byte was sent."""


class ServerError(GstalkError):
    """The server answered no. The connection is in step and stays usable."""


class NotFoundError(ServerError):
    """NOT_FOUND: no such job or tube, or not in a state that the command accepts."""


class BuriedError(ServerError):
    """BURIED: the server was out of memory and buried the job instead; `job_id` names it."""

    def __init__(self, message: str = "", job_id: int | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class NotIgnoredError(ServerError):
    """NOT_IGNORED: the last tube that a connection watches can't be ignored."""


class DeadlineSoonError(ServerError):
    """DEADLINE_SOON: a job that this connection holds runs out within a second."""


class JobTooBigError(ServerError):
    """JOB_TOO_BIG: the body is larger than the server's max-job-size."""


class DrainingError(ServerError):
    """DRAINING: the server takes no new jobs until it is restarted.

    `sent` is "maybe" where an earlier try of the same `Producer.put` may have stored the job.
    """

    sent: Sent = "no"


class OutOfMemoryError(ServerError):
    """OUT_OF_MEMORY: the server has no room for the job, in memory or in its binlog. `sent`: as for `DrainingError`."""

    sent: Sent = "no"


#: What a server says that takes no jobs for now; others may take them.
TakesNoJobs = DrainingError | OutOfMemoryError


class InternalError(ServerError):
    """INTERNAL_ERROR: a bug in the server; it may have acted."""

    sent: Sent = "maybe"


class ProtocolError(GstalkError):
    """The server broke the protocol; the connection is closed. It may have acted.

    `job_id` names the job that the server handed out without the end of its body, if that was it.
    """

    job_id: int | None = None
    sent: Sent = "maybe"


class BadFormatError(ProtocolError):
    """BAD_FORMAT: the server calls the command malformed."""


class UnknownCommandError(ProtocolError):
    """UNKNOWN_COMMAND: the server doesn't know the command."""


class ExpectedCrlfError(ProtocolError):
    """EXPECTED_CRLF: the server found no line end behind a body."""


class DisconnectedError(GstalkError, ConnectionError):
    """The connection is gone. `sent` is "no" or "maybe": may the server have acted?"""

    def __init__(self, message: str = "", sent: Sent = "no") -> None:
        super().__init__(message)
        self.sent: Sent = sent

    # OSError, far above, would build the sentence from errno fields.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConnectError(DisconnectedError):
    """Never got there: refused, no such name, TLS, or no first answer. `sent` is always "no"."""


class ConnectionLostError(DisconnectedError):
    """The outside broke the connection."""


class ConnectionClosedError(DisconnectedError):
    """You closed it, or it belongs to the process that forked this one."""


class CommandTimeoutError(DisconnectedError, TimeoutError):
    """No progress for `Config.conn_timeout` seconds; the connection is closed."""


class PutTimeoutError(DisconnectedError, TimeoutError):
    """A Producer's put ran out of time. `causes`: each URI's last exception."""

    def __init__(self, message: str = "", sent: Sent = "no", causes: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(message, sent)
        self.causes: dict[str, BaseException] = dict(causes or {})


class WrongHubError(GstalkError, RuntimeError):
    """A Conn, or a Job of it, was used from another thread's hub; nothing was sent.

    Use both in the thread that dialed, or dial in each thread. A `Producer` may be used from any thread.
    """


class PutManyError(GstalkError):
    """Some bodies of a put_many failed. `results`: an id or an exception per body taken, in order."""

    def __init__(self, message: str = "", results: Sequence[int | BaseException] = ()) -> None:
        super().__init__(message)
        self.results: list[int | BaseException] = list(results)


class JobFinishedError(GstalkError):
    """The job was deleted, released or buried already, or is being so now; nothing was sent."""


class JobNotFinishedError(GstalkError):
    """A handler returned without finishing its job."""


class RetriesExhaustedError(GstalkError):
    """A job was lost with its worker too often to run again."""

    def __init__(self, message: str = "", job_id: int = 0, attempts: int = 0) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.attempts = attempts


class JobLostError(GstalkError):
    """The server has taken the job back, or its connection is gone; nothing was sent, or it answered NOT_FOUND."""


class Retry(_Picklable, Exception):
    """A handler raises this to have its job released; it counts as an attempt.

    Args:
        delay: Seconds until the job is ready again, rounded up; `None`: as `Config.retry` says.
        priority: `None` keeps the job's own.
    """

    def __init__(self, delay: Any = None, priority: int | None = None) -> None:
        super().__init__(delay, priority)
        self.delay = delay
        self.priority = priority


class Bury(_Picklable, Exception):
    """A handler raises this to have its job buried, for a person to look at.

    Args:
        priority: `None` keeps the job's own.
    """

    def __init__(self, priority: int | None = None) -> None:
        super().__init__(priority)
        self.priority = priority
