"""A put on its way through its tries, and the many of a `put_many`.

What becomes of a try that failed is decided in `schedule.judge`, a table:

    not sent: no connection, or lost before its last byte was handed over    another connection
    sent, no reply; INTERNAL_ERROR                                           another, unless retry_ambiguous=False
    the server broke the protocol                                            as before, but another server
    DRAINING, OUT_OF_MEMORY                                                  another server; this one rests for 5 s
    BAD_FORMAT, UNKNOWN_COMMAND, EXPECTED_CRLF; JOB_TOO_BIG; BURIED          its end

A put ends with its id or with an error, and neither is raised in here: what a wait raises is the caller's own. The
error is for one caller, and no frame of its traceback may hold it, or the two keep each other for ever.
"""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from functools import partial
from typing import Any

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event

from gstalk.connection.calls import join
from gstalk.connection.clock import monotonic
from gstalk.connection.critical import critical
from gstalk.errors import (
    BuriedError,
    ConnectionClosedError,
    GstalkError,
    InternalError,
    PutTimeoutError,
    Sent,
    TakesNoJobs,
)
from gstalk.pool.put_queue import TICK, Member, PutQueue
from gstalk.pool.schedule import judge
from gstalk.protocol import commands
from gstalk.protocol.request import PENDING, PutRequest, Request
from gstalk.traces import bare

__all__ = ["Batch", "Put", "run"]

MOST = 512  # bodies of one call under way: memory stays bounded, and more would not be faster
LOST = 1.0  # seconds between two looks for an end that a signal has kept from being told
LOOK = 0.25  # seconds between two looks for a server that has not broken the protocol
NONE: frozenset[str] = frozenset()


class Put:
    """A put of which more must be known than its bytes: it has failed once, waits, or is one of many.

    Attributes:
        queue: Where it goes.
        tube, data: What is put.
        deadline: When its time is over; `None`: never.
        once: It takes what is usable now, and no second try.
        uri: The server of the last try.
        tries: How many have failed.
        error: Why the last one has.
    """

    __slots__ = (
        "_began _broken _causes _maybes _pause_until _tried data deadline error queue once tries tube uri"
    ).split()

    def __init__(
        self, queue: PutQueue, tube: str, data: bytes, deadline: float | None, once: bool, began: float | None = None
    ) -> None:
        self.queue = queue
        self.tube = tube
        self.data = data
        self.deadline = deadline
        self.once = once
        self.uri: str | None = None
        self.tries = 0
        self.error: GstalkError | None = None
        self._began = monotonic() if began is None else began
        self._tried = NONE  # servers, in this round
        self._broken = NONE  # servers that have broken the protocol for it
        self._maybes = 0  # tries that may have stored the job
        self._pause_until = 0.0  # when a server that said no may be asked again
        self._causes: dict[str, BaseException] | None = None

    @property
    def sent(self) -> Sent:
        """Whether any try may have stored the job."""
        return "maybe" if self._maybes else "no"

    @critical
    def choose(self, in_turn: bool) -> Member | GstalkError | None:
        """Say what is next: a connection, which is taken, an error that ends it, or `None`: it has to wait.

        Args:
            in_turn: Whether its turn has come; else those in line come first.
        """
        with self.queue.section:
            return self._choose(in_turn)

    def _choose(self, in_turn: bool) -> Member | GstalkError | None:
        queue = self.queue
        if queue.pool.is_stopped:
            return self._ended()
        if self.deadline is not None and self.deadline <= monotonic():
            return self._time_over()
        member = None
        if in_turn or not queue.has_line:
            member = queue.take_other(self._tried)
            if member is None and self._tried and self._pause_until <= monotonic():
                # All usable servers have failed once: go round again, but not as fast as a server can say no. (A lost
                # connection takes its time to come back by itself.)
                self._tried = self._broken
                member = queue.take_other(self._tried)
        if member is not None:
            self.uri = member.server.uri
            return member
        if (refusal := queue.refusal_of_all) is not None:
            return self._told(bare(refusal))
        if self.once:
            return self._time_over()
        if queue.is_ending and not queue.pool.is_connected:
            return self._ended()
        return None

    def wait(self) -> None:
        """Wait until it may be worth while to `choose` again."""
        now = monotonic()
        pause = self._pause_until - now
        if pause <= 0 and self._broken and self.queue.pool.is_connected:
            pause = LOOK  # in line it would be told of connections that are of no use to it
        if pause <= 0:
            self.queue.wait(self.deadline)
        else:
            gevent.sleep(pause if self.deadline is None else min(pause, max(self.deadline - now, 0.0)))

    def another(self) -> Member | GstalkError:
        """Take a connection for the next try, or say with which error it ends; waits if need be."""
        found = self.choose(self.once)
        if found is None:
            while found is None:
                self.wait()
                found = self.choose(True)
        elif found.__class__ is not Member and not self.tries:
            self.queue.breathe()
        return found

    def failed(self, member: Member, error: GstalkError) -> GstalkError | None:
        """Take note of a try that failed, and return the error that ends the put, or `None`: another may follow."""
        queue, server = self.queue, member.server
        once = self.once or queue.pool.is_stopped
        others = len(queue.pool.servers) - len(self._broken | {server.uri})
        judgement = judge(error, self._maybes, others, once=once, retry_ambiguous=queue.config.retry_ambiguous)
        self.tries += 1
        self.error = error
        self._tried |= {server.uri}
        self._maybes += judgement.maybe
        if judgement.server == "refuses":
            assert isinstance(error, TakesNoJobs)
            queue.leave_alone(server, error)
        elif judgement.server == "broken":
            self._broken |= {server.uri}
        if isinstance(error, PutTimeoutError):
            self._causes = {server.uri: error, **(self._causes or {})}
            return self._time_over()
        if not judgement.again:
            return self._told(error)
        self._causes = {**(self._causes or {}), server.uri: error}
        if isinstance(error, InternalError):
            self._pause_until = monotonic() + min(TICK * 2.0 ** min(self.tries, 5), 1.0)
        return None

    def tell_retry(self, passing: bool = False) -> None:
        """Tell that another try follows. `passing`: as for `Hooks.event`."""
        fields = {"uri": self.uri, "tube": self.tube, "attempt": self.tries, "exception": self.error}
        self.queue.hooks.event("put_retry", passing=passing, **fields)

    def tell(self, result: int | BaseException, at: float | None = None) -> None:
        """Tell of its end, in the greenlet that it is put for."""
        error = result if isinstance(result, BaseException) else None
        self.queue.hooks.event(
            "put",
            passing=True,
            uri=self.uri,
            tube=self.tube,
            job_id=getattr(error, "job_id", None) if isinstance(result, BaseException) else result,
            attempt=self.tries + (error is None) or None,
            exception=error,
            duration=(monotonic() if at is None else at) - self._began,
        )

    def interrupted(self) -> GstalkError:
        """The error of a put whose greenlet was ended from outside."""
        return ConnectionClosedError("put: the greenlet that tried it again was killed", self.sent)

    def _told(self, error: GstalkError) -> GstalkError:
        """Have an error say so if an earlier try may have stored the job, and it does not say that of itself."""
        if not self._maybes or isinstance(error, BuriedError) or getattr(error, "sent", "no") == "maybe":
            return error
        told: Any = bare(error, "; an earlier try may have stored the job")
        told.sent = "maybe"
        told.__cause__ = error
        return told  # type: ignore[no-any-return]

    def _ended(self) -> ConnectionClosedError:
        if self.queue.is_ending:
            return ConnectionClosedError("put: this Producer is stopped", self.sent)
        return ConnectionClosedError("put: it began in the parent process, which goes on with it", "maybe")

    def _time_over(self) -> PutTimeoutError:
        causes = {**self.queue.pool.troubles(), **(self._causes or {})}
        count = len(self.queue.pool.servers)
        last = f"; last error: {list(causes.values())[-1]}" if causes else "; all connections were busy"
        stored = "; the job may have been stored" if self._maybes else ""
        return PutTimeoutError(
            f"put to {self.tube!r}: no success with any of {count} server{'s' * (count > 1)} in time{last}{stored}",
            self.sent,
            causes,
        )


@critical
def run(
    queue: PutQueue, tube: str, data: bytes, deadline: float | None, once: bool, put: Put | None = None
) -> int | GstalkError:
    """Try a put until it is done, refused or out of time, and return its id or its error.

    Args:
        put: What is known of it, if it has failed once or is told of; else that is made when it is needed.
    """
    section = queue.section
    me = getcurrent()
    member: Member | None = None
    while True:
        if section.owner is not None:
            section.wait()
        if put is not None:
            found = put.another()
            if not isinstance(found, Member):
                return found
            member = found
        try:
            section.owner = me
            if put is None:
                member = queue.take()
            if member is not None:
                request = queue.send(member, tube, data, deadline)
        finally:
            section.owner = None
        if member is None:
            put = Put(queue, tube, data, deadline, once)
            continue
        try:
            join(queue.hub, request)
        finally:
            inside = section.owner  # a kill wakes us also while another greenlet is: it stays inside
            section.owner = me
            queue.done(member)
            section.owner = inside
        error: Any = request.error
        if error is None:
            job_id: int = request.result
            return job_id
        if put is None:
            put = Put(queue, tube, data, deadline, once)
            put.uri = member.server.uri
        with section:
            final = put.failed(member, error)
        if final is not None:
            return final
        put.tell_retry(passing=True)


class Batch:
    """The bodies of one `put_many`: each has its place in the results, its own time and its own tries.

    The greenlet that takes the bodies sends them; the hub notes the answers, also while the iterable waits. A body
    that failed is tried again in a greenlet of its own, which ends with it, or with the call.
    """

    def __init__(self, queue: PutQueue, tube: str, once: bool) -> None:
        self.queue = queue
        self._me = getcurrent()
        self.results: list[int | BaseException] = []
        self.failures = 0
        self.tube = tube
        self.once = once
        self._under_way: dict[_One, None] = {}
        self._wanted = -1  # what is waited for: that no more than so many are under way
        self._changed = Event()
        self._trying: dict[_One, Greenlet[..., Any]] = {}
        self.is_over = False
        self._untold: deque[_One] | None = deque() if queue.hooks.listens else None
        self._context = copy_context() if queue.hooks.listens else None

    def refuse(self, error: BaseException) -> None:
        """Give a body that can't be put its place."""
        self.results.append(error.with_traceback(None))  # it holds our frames, and they hold the results
        self.failures += 1
        self.queue.breathe()

    def wait_room(self) -> None:
        """Wait while too many are under way, before the next body is taken: its time begins then."""
        if len(self._under_way) >= MOST:
            self._wait(MOST // 2)

    @critical
    def add(self, data: bytes, began: float, deadline: float | None) -> None:
        """Send a body; waits for a connection."""
        queue = self.queue
        one = _One(self, data, deadline, began)
        self.results.append(PENDING)
        if self._untold is not None:
            self._tell()
            self._untold.append(one)
        self._under_way[one] = None
        queue.puts += 1
        section = queue.section
        if section.owner is not None:
            section.wait()
        try:
            section.owner = self._me
            member = queue.take()
            if member is not None:
                one.send(member)
        finally:
            section.owner = None
        if member is None:
            found = one.another()
            if not isinstance(found, Member):
                self.settle(one, found)
                return
            with section:
                one.send(found)

    def end(self) -> None:
        """Wait until every body has its result."""
        self._wait(0)
        self._tell()

    def leave(self) -> None:
        """The call is over: what is still under way, because it was interrupted, is not tried again."""
        self.is_over = True
        for greenlet in list(self._trying.values()):
            greenlet.kill(block=False)
        self.queue.leave(len(self._under_way))
        for one in self._under_way:
            one.leave()
        self._under_way.clear()

    def _wait(self, most: int) -> None:
        self._wanted = most
        while len(self._under_way) > most:
            self._tell()
            self._changed.clear()
            if not self._changed.wait(LOST):
                for one, greenlet in list(self._trying.items()):
                    if greenlet.ready():
                        self._tried(one, greenlet)
        self._wanted = -1

    def failed(self, one: _One, member: Member, error: GstalkError) -> None:
        """In the hub: a try has failed, and the iterable may be waiting, so that nobody else can try again."""
        greenlet = self._trying.get(one)
        if greenlet is None:  # else a signal has struck here before
            final = one.failed(member, error)
            if final is not None:
                self.settle(one, final)
                return
            if self.is_over:
                return
            greenlet = Greenlet(one.go_on) if self._context is None else Greenlet(self._context.copy().run, one.go_on)
            greenlet.name = "gstalk-put"
            greenlet.rawlink(partial(self._tried, one))
            self._trying[one] = greenlet
        greenlet.start()

    def _tried(self, one: _One, greenlet: Greenlet[..., Any]) -> None:
        outcome = greenlet.value
        self.settle(one, outcome if isinstance(outcome, (int, GstalkError)) else one.interrupted())
        self._trying.pop(one, None)

    def settle(self, one: _One, outcome: int | GstalkError) -> None:
        """Write a body's result. May be called in the hub; a second time it does nothing."""
        if one not in self._under_way:
            return
        self.results[one.number] = outcome
        if self._untold is not None:
            one.ended_at = monotonic()
        self._under_way.pop(one)  # last: a signal that strikes before it has this called again
        self.failures += outcome.__class__ is not int
        self.queue.leave()
        if len(self._under_way) <= self._wanted:
            self._changed.set()

    def _tell(self) -> None:
        """Tell of those that have ended, in their order, in the greenlet that they are put for."""
        untold = self._untold
        while untold and untold[0] not in self._under_way:
            one = untold.popleft()
            one.tell(self.results[one.number], one.ended_at)


class _One(Put):
    """One body of many."""

    __slots__ = ("_batch", "_member", "ended_at", "number")

    def __init__(self, batch: Batch, data: bytes, deadline: float | None, began: float) -> None:
        super().__init__(batch.queue, batch.tube, data, deadline, batch.once, began)
        self.number = len(batch.results)
        self.ended_at = 0.0
        self._batch = batch
        self._member: Member | None = None

    def send(self, member: Member) -> None:
        self._member = member
        self.uri = member.server.uri
        request = PutRequest(commands.PUT, member.connection.pipe.uri, self._answered, self.deadline, 0.0)
        self.queue.send(member, self.tube, self.data, self.deadline, request)

    def _answered(self, request: Request) -> None:
        """In the hub: the answer is here; or, a second time, after its time was over."""
        member = self._member
        if member is None:
            return
        error: Any = request.error
        if error is None:
            self._batch.settle(self, request.result)
        else:
            self._batch.failed(self, member, error)
        self._member = None
        self.queue.done(member)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        member, self._member = self._member, None
        if member is not None:
            self.queue.done(member)

    def go_on(self) -> int | GstalkError:
        """Try again, in a greenlet that is there for that."""
        self.tell_retry()
        if self._batch.is_over:  # a hook may have caught the kill
            return self.interrupted()
        return run(self.queue, self.tube, self.data, self.deadline, self.once, self)
