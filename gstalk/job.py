"""A job: its id, its body, and what its holder may do with it. The connection it came from carries that out.

A job's states, kept in `_state` and moved by `connection.reserved` alone, when a reply is parsed, not when a caller
resumes:

    peeked      somebody else's, or nobody's: commands go out as they are
    held        reserved by this connection
    settling    a delete, release or bury of it is under way
    finished    that succeeded
    lost        the connection is gone, or the server says that the job isn't ours any more

settling goes back to held if the server refused but still holds the job for us. finished and lost are for ever.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Protocol

from gstalk.protocol.stats import JobStats
from gstalk.traces import forget, forgetful

__all__ = ["Job", "Owner", "State", "state_of"]

State = Literal["peeked", "held", "settling", "finished", "lost"]
Seconds = int | float | timedelta


class Owner(Protocol):
    """What a job needs of its connection."""

    @property
    def uri(self) -> str: ...
    def delete(self, job: Job | int) -> None: ...
    def release(self, job: Job | int, priority: int | None = None, delay: Seconds = 0) -> None: ...
    def bury(self, job: Job | int, priority: int | None = None) -> None: ...
    def touch(self, job: Job | int) -> None: ...
    def kick_job(self, job: Job | int) -> None: ...
    def stats_job(self, job: Job | int) -> JobStats: ...


@forgetful(but=("delete",))
class Job:
    """A job, reserved or peeked. Made by `Conn` and `Consumer` only.

    Attributes:
        id: The server's number for it; unique on that server until it restarts.
        body: The bytes that were put.
        tube: Its tube, as far as known: from a reserve on a connection that watches one tube, from a peek at a tube,
            or after `stats`.
        reserved_at: When the reply that reserved it was read, by `time.monotonic`; `None` if peeked.
    """

    __slots__ = ("__weakref__", "_owner", "_state", "body", "id", "reserved_at", "tube")

    def __init__(
        self, owner: Owner, id: int, body: bytes, tube: str | None, reserved_at: float | None, state: State
    ) -> None:
        self._owner = owner
        self._state: State = state
        self.id = id
        self.body = body
        self.tube = tube
        self.reserved_at = reserved_at

    def __repr__(self) -> str:
        return f"<Job {self.id} at {self.uri}, {len(self.body)} bytes, {self._state}>"

    @property
    def uri(self) -> str:
        """The server that the job is on."""
        return self._owner.uri

    @property
    def is_finished(self) -> bool:
        """Whether a delete, release or bury of it succeeded."""
        return self._state == "finished"

    @property
    def is_lost(self) -> bool:
        """Whether the server has taken it back, because the connection is gone or its time to run was over."""
        return self._state == "lost"

    def delete(self) -> None:
        """Remove the job for good: the work is done.

        Raises:
            JobFinishedError: It is finished, or being finished now.
            JobLostError: The server has taken it back; it will run, or has run, again.
            NotFoundError: It was peeked, and is gone or reserved by somebody.
            DisconnectedError: The connection ended; `sent` says whether the server may have deleted it.

        Blocks:
            Until the reply. Interrupted, it is carried out all the same; `is_finished` and `is_lost` will tell.

        Protocol:
            ``delete <id>`` -> ``DELETED``, ``NOT_FOUND``; doc/protocol.txt, "Worker Commands".
        """
        try:
            self._owner.delete(self)
        except BaseException as error:
            forget(error)
            del self
            raise

    def release(self, priority: int | None = None, delay: Seconds = 0) -> None:
        """Give the job back to its tube, for another attempt.

        Args:
            priority: 0 to 4294967295, 0 the most urgent; `None` keeps the job's own, which costs a ``stats-job``.
            delay: Seconds until it is ready again, rounded up to whole ones; at most 4294967295.

        Raises:
            BuriedError: The server was out of memory and buried the job instead; it is finished.
            InvalidArgumentError, JobFinishedError, JobLostError, DisconnectedError: As `delete`.

        Blocks:
            As `delete`.

        Protocol:
            ``release <id> <pri> <delay>`` -> ``RELEASED``, ``BURIED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._owner.release(self, priority, delay)

    def bury(self, priority: int | None = None) -> None:
        """Put the job aside until somebody kicks it: a person should look.

        Args:
            priority: As in `release`.

        Raises:
            InvalidArgumentError, JobFinishedError, JobLostError, DisconnectedError: As `delete`.

        Blocks:
            As `delete`.

        Protocol:
            ``bury <id> <pri>`` -> ``BURIED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._owner.bury(self, priority)

    def touch(self) -> None:
        """Start the job's time to run anew.

        Raises:
            JobFinishedError, JobLostError, DisconnectedError: As `delete`.

        Blocks:
            Until the reply.

        Protocol:
            ``touch <id>`` -> ``TOUCHED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._owner.touch(self)

    def kick(self) -> None:
        """Make a buried or delayed job ready, whatever became of this object.

        Raises:
            NotFoundError: There is no such job, or it is neither buried nor delayed.
            DisconnectedError: The connection ended.

        Blocks:
            Until the reply.

        Protocol:
            ``kick-job <id>`` -> ``KICKED``, ``NOT_FOUND``; "Other Commands".
        """
        self._owner.kick_job(self)

    def stats(self) -> JobStats:
        """Ask the server for the job's state, attempts and times; sets `tube`.

        Raises:
            JobLostError: We had reserved it, and it is gone.
            NotFoundError: It is gone.
            DisconnectedError: The connection ended.

        Blocks:
            Until the reply.

        Protocol:
            ``stats-job <id>`` -> ``OK``, ``NOT_FOUND``; "Other Commands".
        """
        return self._owner.stats_job(self)

    def time_left(self) -> float:
        """Ask the server how many whole seconds are left until a reserved job runs out; 0 if it isn't reserved.

        Raises and blocks as `stats`.
        """
        stats = self.stats()
        return float(stats.time_left or 0) if stats.state == "reserved" else 0.0


def state_of(job: Job) -> State:
    """The state of a job, for the rooms of gstalk that decide about it."""
    return job._state
