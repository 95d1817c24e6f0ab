"""The reserves of a Conn: greenlets stand in line for jobs, and this decides what to ask the server, and when.

A reserve that waits on the server stops every command behind it, so there are two ways to ask:

    waiting   while the Conn holds no job and has nothing else in flight, one reserve waits on the server, in slices
    asking    otherwise, and for ever once a wait was in somebody's way: ``reserve-with-timeout 0``, one for each
              caller as he comes; after a hit as many as stand in line; after a miss one, after a pause that grows
              from 1 to 50 ms

What is asked is anonymous: a job goes to whoever stands first in line. A caller is told "none" only when his time is
over and an ask that went out for him has been answered. A job that comes while nobody stands in line goes back.

Where it finds nothing and jobs are held, the server is asked about those, too, now and then: it doesn't tell when a
time to run is over, and a job that nobody has finished by then would have this ask for ever instead of wait.

A wait that meets another command, or that nobody waits for any more, is recalled: `Connection` half-closes the
socket, reads it to the end and dials anew. That happens once in a Conn's life; from then on it asks.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.loop import InHub, fail_stop
from gstalk.errors import ConnectionClosedError, DeadlineSoonError, DisconnectedError, Sent
from gstalk.job import Job
from gstalk.protocol import commands
from gstalk.protocol.pauses import FIRST_PAUSE, QUIET, longer
from gstalk.protocol.request import PENDING, Outcome, Request

__all__ = ["Caller", "ReserveLine"]

INFINITY = float("inf")
GRACE = 0.1  # how much later than a caller's own clock the server's may be


class Caller(Outcome):
    """A greenlet in line.

    Attributes:
        until: When its time is over.
        ask: The number of the last ask that went out for it.
        was_recalled: Whether a wait on the server was its, too, and was recalled: the server may have acted.
    """

    __slots__ = ("ask", "timer", "until", "was_recalled")

    def __init__(self, until: float) -> None:
        self.result = PENDING  # as in Request, without a call
        self.error = None
        self.waiter = None
        self.until = until
        self.ask = 0
        self.timer: Any = None
        self.was_recalled = False


class ReserveLine(InHub):
    """The line of greenlets that reserve on one Conn."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_asked",
        "_callers",
        "_connection",
        "_may_wait",
        "_pause",
        "_quiet_until",
        "_soon",
        "_timed",
        "_timer",
        "_wait",
        "_wait_ends",
        "hub",
        "section",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.hub, self.section = connection.hub, connection.section
        self._callers: deque[Caller] = deque()
        self._timed = 0  # how many of them wait for a time only: while none does, nobody's need be looked at
        self._asked = 0  # asks sent, ever
        self._answered = 0  # and answered
        self._pause = FIRST_PAUSE
        self._quiet_until = 0.0
        self._soon = False  # the last answer was DEADLINE_SOON: one ask at a time
        self._timer: Any = None
        self._may_wait = True
        self._wait: Request | None = None  # the reserve that waits on the server
        self._wait_ends = 0.0

    def join(self, timeout: float | None) -> Caller:
        """Stand in line. The call is answered with a `Job` or `None`; whoever is interrupted must `leave`."""
        caller = Caller(INFINITY if timeout is None else monotonic() + timeout)
        if timeout == 0:
            if caller.until < self._quiet_until:
                caller.succeed()
                return caller
            if self._wait is not None:
                self.recall()
        self._timed += timeout is not None
        self._callers.append(caller)
        if timeout:  # last: where a signal strikes, its timer is closed with all those in line
            caller.timer = self.once(timeout, self._expire, caller)
        if self._wait is not None:
            caller.ask = self._asked
        else:
            self._ask(caller)
        return caller

    @property
    def is_waiting(self) -> bool:
        """Whether a reserve waits on the server."""
        return self._wait is not None

    def struck(self, error: BaseException) -> None:
        """A signal's exception has hit the line: its counts can't be trusted, so the connection ends."""
        self._connection.pipe.struck(error)

    @fail_stop
    def leave(self, caller: Caller) -> None:
        """A caller was interrupted: nothing may come to him any more, and a job that has come goes back."""
        if caller in self._callers:
            self._callers.remove(caller)
            self._timed -= caller.until != INFINITY
            if caller.timer is not None:
                caller.timer.close()
            if not self._callers:
                self._stop_timer()
                if self._wait is not None:
                    self.recall()
        elif isinstance(caller.result, Job):
            self._connection.give_back(caller.result)

    @fail_stop
    def recall(self) -> None:
        """End the wait on the server: another command is to go out, or nobody waits any more."""
        assert self._wait is not None
        self._may_wait = False
        self._wait.then = None
        self._wait = None
        self._answered = self._asked
        for each in self._callers:
            each.was_recalled = True
        self._connection.recall()
        if self._callers:
            self._ask(self._callers[0])

    def reserve_job(self, job_id: int) -> Job:
        data = commands.by_id(commands.RESERVE_JOB, job_id)
        request = Request(commands.RESERVE_JOB, self._connection.pipe.uri, job_id, self._reserved_by_id)
        pipe = self._connection.send(data, request)
        try:
            job: Job = pipe.wait(request)
        except BaseException:
            if isinstance(request.result, Job):  # it came, and then the caller was hit
                self._connection.return_job(request.result)
            raise
        return job

    def _reserved_by_id(self, request: Request) -> None:
        if request.error is None:
            job = self._connection.hold(*request.result)
            job.tube = None
            request.succeed(job)
            if request.waiter is None:
                self._connection.give_back(job)

    def end(self) -> None:
        """The connection is over, or about to be closed: so is everybody's wait."""
        self._stop_timer()
        self._wait = None
        while self._callers:
            if self._connection.pipe.failure is not None:
                error = self._connection.pipe.error("reserve")
            else:
                sent: Sent = "maybe" if self._callers[0].ask > self._answered else "no"
                error = ConnectionClosedError(f"reserve at {self._connection.uri}: you closed it", sent)
            self._answer_first(None, error)

    # -- what to ask, and when ---------------------------------------------------------------------------------

    def _ask(self, caller: Caller) -> None:
        """Ask the server for this caller, in whichever way is right now."""
        connection = self._connection
        now = monotonic()
        if connection.pipe.failure is not None:
            return
        if now < self._quiet_until:
            self._set_timer(self._quiet_until - now)
            return
        if self._soon and self._asked != self._answered:
            caller.ask = self._asked  # its answer is this caller's, too
            return
        self._asked += 1
        caller.ask = self._asked
        has_time = caller.until > now  # who has none is told at once what there is: a wait for others would keep him
        if self._may_wait and has_time and not connection.reserved.by_id and not connection.pipe.requests:
            seconds = int(connection.config.reserve_timeout)
            if self._timed == len(self._callers):
                seconds = int(min(seconds, max(each.until for each in self._callers) - now))
            if seconds >= 1:
                if self._timer is not None:
                    self._stop_timer()
                for each in self._callers:
                    each.ask = self._asked
                self._wait_ends = now + seconds
                self._wait = connection.begin_wait(seconds, self._on_reply, self.recall)
                return
        connection.ask(self._on_reply)

    def _on_reply(self, request: Request) -> None:
        self._answered += 1
        was_waiting, self._wait = self._wait is not None, None
        self._soon = False
        if request.error is not None:
            self._soon = isinstance(request.error, DeadlineSoonError)
            if self._soon:
                self._quiet_until = monotonic() + QUIET
            if self._callers:
                self._answer_first(None, request.error)
            if isinstance(request.error, DisconnectedError):
                return
        elif request.result is not None:
            if not self._callers:
                self._connection.give_back(request.result)
                return
            self._answer_first(request.result)
            self._pause = FIRST_PAUSE
            missing = len(self._callers) - (self._asked - self._answered)
            if missing > 0:
                for caller in list(islice(self._callers, missing)):
                    self._ask(caller)
        elif self._connection.reserved.by_id:
            self._connection.look_after_jobs()  # or this might ask for ever, and never wait, for jobs that are gone
        if self._timed:
            self._dismiss()
        if not self._callers:
            if self._timer is not None:
                self._stop_timer()
        elif self._asked == self._answered:
            if was_waiting:  # a slice is over
                self._ask(self._callers[0])
            else:
                self._set_timer(self._pause)
                self._pause = longer(self._pause)

    def _dismiss(self) -> None:
        """Tell "none" to all whose time is over and whose last ask was answered."""
        now = monotonic()
        quiet = now < self._quiet_until
        for caller in [c for c in self._callers if c.until <= now and (quiet or c.ask <= self._answered)]:
            self._answer(caller, None)
            self._callers.remove(caller)

    def _expire(self, caller: Caller) -> None:
        """A caller's time is over: a last ask for him, unless the server will say so itself in a moment."""
        if caller not in self._callers:
            return
        now = monotonic()
        caller.until = min(caller.until, now)
        if now < self._quiet_until:
            self._dismiss()
        elif self._wait is not None:
            if len(self._callers) > 1 or self._wait_ends > now + GRACE:
                self._answer(caller, None)
                self._callers.remove(caller)
                if not self._callers:
                    self.recall()
        elif caller.ask <= self._answered:
            self._ask(caller)

    def _answer_first(self, job: Job | None, error: BaseException | None = None) -> None:
        self._answer(self._callers[0], job, error)
        self._callers.popleft()  # last: a signal that comes between must not lose him

    def _answer(self, caller: Caller, job: Job | None, error: BaseException | None = None) -> None:
        self._timed -= caller.until != INFINITY
        if caller.timer is not None:
            caller.timer.close()
        if error is None:
            caller.result = job  # `succeed`, without a call
        else:
            caller.fail(_doubtful(error) if caller.was_recalled else error)
        self._connection.pipe.complete(caller)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.once(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._stop_timer()
        self._dismiss()
        if self._callers and self._asked == self._answered and self._wait is None:
            self._ask(self._callers[0])

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None


def _doubtful(error: BaseException) -> BaseException:
    """Say of what was never sent anew that the server may have acted, as long as it waited there."""
    if not isinstance(error, DisconnectedError) or error.sent == "maybe":
        return error
    known = type(error)(f"{str(error).removesuffix('; it was not sent')}; the server may have acted", "maybe")
    known.__cause__ = error.__cause__
    return known
