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
from gstalk.pool.put_queue import TICK, Member, PutQueue, Try
from gstalk.pool.schedule import judge
from gstalk.traces import bare

__all__ = ["MOST", "Batch", "Put", "go_on", "run"]

MOST = 512  # bodies of one call under way: memory stays bounded, and more would not be faster
LOST = 1.0  # seconds between two looks for an end that a signal has kept from being told
LOOK = 0.25  # seconds between two looks for a server that has not broken the protocol
NONE: frozenset[str] = frozenset()


class Put:
    """A put of which more must be known than its bytes: it has failed once, waits, or is one of many.

    Attributes:
        queue: Where it goes.
        tube, data: What is put.
        deadline: When its time is over; `NEVER`: it has no limit.
        once: It takes what is usable now, and no second try.
        uri: The server of the last try.
        tries: How many have failed.
        error: Why the last one has.
    """

    __slots__ = (
        "_began _broken _causes _maybes _pause_until _tried data deadline error queue once tries tube uri"
    ).split()

    def __init__(self, queue: PutQueue, tube: str, data: bytes, deadline: float, once: bool, began: float) -> None:
        self.queue = queue
        self.tube = tube
        self.data = data
        self.deadline = deadline
        self.once = once
        self.uri: str | None = None
        self.tries = 0
        self.error: GstalkError | None = None
        self._began = began
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
        if self.deadline <= monotonic():
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
        if self.once or (self.tries and queue.pool.needs_me):
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
            turn = Try(self.deadline)
            try:
                self.queue.stand(turn)
                join(self.queue.hub, turn)
            finally:
                self.queue.done(turn)
        else:
            gevent.sleep(min(pause, max(self.deadline - now, 0.0)))

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
def run(put: Put) -> int | GstalkError:
    """Try a put until it is done, refused or out of time, and return its id or its error."""
    queue = put.queue
    me = getcurrent()
    while True:
        if queue.section.owner is not None:
            queue.section.wait()
        member = put.another()
        if not isinstance(member, Member):
            return member
        request = Try(put.deadline)
        try:
            queue.send(request, put.tube, put.data, me, 0.0, member)
            join(queue.hub, request)
        finally:
            queue.done(request)
        error: Any = request.error
        if error is None:
            job_id: int = request.result
            return job_id
        with queue.section:
            final = put.failed(member, error)
        if final is not None:
            return final
        put.tell_retry(passing=True)


def go_on(put: Put, request: Try) -> int | GstalkError:
    """Go on with a put whose first try has failed, or couldn't be made, and of which nobody is told."""
    error = request.error
    member, request.member = request.member, None
    if member is not None:
        assert isinstance(error, GstalkError)
        with put.queue.section:
            put.queue.enqueue(member)
            final = put.failed(member, error)
        if final is not None:
            return final
    return run(put)


class BodyTry(Try):
    """The first try of one body of many.

    Attributes:
        number: Its place in the results.
        put: What more is known of it; `None`: nothing need be, so far.
    """

    __slots__ = ("ended_at", "number", "put")
    number: int
    put: Put | None
    ended_at: float


class Batch:
    """The bodies of one `put_many`: each has its place in the results, its own time and its own tries.

    The greenlet that takes the bodies sends them; the hub notes the answers, also while the iterable waits. A body
    that failed is tried again in a greenlet of its own, which ends with it, or with the call.

    Attributes:
        results: An id or an exception for each body; while it is under way, the `BodyTry`.
        under_way: How many of them are.
        failures: How many have failed.
    """

    def __init__(self, queue: PutQueue, tube: str, once: bool) -> None:
        self.queue = queue
        self.results: list[Any] = []
        self.under_way = 0
        self.failures = 0
        self.is_over = False
        self._tube = tube
        self._once = once
        self._me = getcurrent()
        self._wanted = -1  # what is waited for: that no more than so many are under way
        self._changed = Event()
        self._trying: dict[BodyTry, Greenlet[..., Any]] = {}
        self._untold: deque[BodyTry] | None = deque() if queue.hooks.listens else None
        self._context = copy_context() if queue.hooks.listens else None

    def refuse(self, error: BaseException) -> None:
        """Give a body that can't be put its place."""
        self.results.append(error.with_traceback(None))  # it holds our frames, and they hold the results
        self.failures += 1
        self.queue.breathe()

    def wait_room(self) -> None:
        """Wait where `MOST` are under way, before the next body is taken: its time begins then."""
        self._wait(MOST // 2)

    @critical
    def add(self, data: bytes, now: float, deadline: float) -> None:
        """Send a body; waits for a connection."""
        queue, results = self.queue, self.results
        body = BodyTry(deadline, self._answered)
        body.number, body.data, body.began, body.put = len(results), data, now, None
        if self._untold is not None:
            self._tell()
            body.put = self._put(body)
            self._untold.append(body)
        results.append(body)
        # While any is under way, all of them together count as one put. In one step: if a signal handler waits between
        # two, the others may be answered meanwhile, and this one would look like the first.
        self.under_way, queue.puts = self.under_way + 1, queue.puts + (not self.under_way)
        if not queue.send(body, self._tube, data, self._me, now):
            found = self._put(body).another()
            if not isinstance(found, Member):
                self._settle(body, found)
                return
            queue.send(body, self._tube, data, self._me, now, found)

    def _put(self, body: BodyTry) -> Put:
        if body.put is None:
            body.put = Put(self.queue, self._tube, body.data, body.deadline, self._once, body.began)
        return body.put

    def end(self) -> None:
        """Wait until every body has its result."""
        self._wait(0)
        self._tell()

    def leave(self) -> None:
        """The call is over: what is still under way, because it was interrupted, is not tried again."""
        self.is_over = True
        for greenlet in list(self._trying.values()):
            greenlet.kill(block=False)
        still, self.under_way = self.under_way, 0  # in one step, as above
        if still:
            self.queue.leave()
            self.results, self._untold = [], None  # bodies refer to this: else a cycle would keep them

    def _wait(self, most: int) -> None:
        self._wanted = most
        while self.under_way > most:
            self._tell()
            self._changed.clear()
            if not self._changed.wait(LOST):
                for body, greenlet in list(self._trying.items()):
                    if greenlet.ready():
                        self._tried(body, greenlet)
        self._wanted = -1

    def _answered(self, body: BodyTry) -> None:
        """In the hub: the answer is here, perhaps behind the call's end; or, a second time, after its time was over."""
        member = body.member
        if member is None:
            return
        error: Any = body.error
        if self.is_over:
            pass
        elif error is None:
            self._settle(body, body.result)
        else:
            self._failed(body, member, error)
        body.member = None
        if not member.in_queue:
            self.queue.enqueue(member)

    def _failed(self, body: BodyTry, member: Member, error: GstalkError) -> None:
        """In the hub: a try has failed, and the iterable may be waiting, so that nobody else can try again."""
        greenlet = self._trying.get(body)
        if greenlet is None:  # else a signal has struck here before
            put = self._put(body)
            put.uri = member.server.uri
            final = put.failed(member, error)
            if final is not None:
                self._settle(body, final)
                return
            if self.is_over:
                return
            again = partial(self._try_again, put)
            greenlet = Greenlet(again) if self._context is None else Greenlet(self._context.copy().run, again)
            greenlet.name = "gstalk-put"
            greenlet.rawlink(partial(self._tried, body))
            self._trying[body] = greenlet
        greenlet.start()

    def _try_again(self, put: Put) -> int | GstalkError:
        """In a greenlet that is there for that."""
        put.tell_retry()
        if self.is_over:  # a hook may have caught the kill
            return put.interrupted()
        return run(put)

    def _tried(self, body: BodyTry, greenlet: Greenlet[..., Any]) -> None:
        outcome = greenlet.value
        if not self.is_over:
            self._settle(body, outcome if isinstance(outcome, (int, GstalkError)) else self._put(body).interrupted())
        self._trying.pop(body, None)

    def _settle(self, body: BodyTry, outcome: int | GstalkError) -> None:
        """Write a body's result. May be called in the hub; a second time it does nothing."""
        results = self.results
        if results[body.number] is not body:
            return
        if self._untold is not None:
            body.ended_at = monotonic()
        if outcome.__class__ is not int:
            self.failures += 1
        # In one step: what a signal strikes is called again, and then finds all done, or nothing. If its handler waits
        # behind that, the last one may be answered meanwhile: that one, and not this, ends what is under way.
        results[body.number], self.under_way, is_last = outcome, self.under_way - 1, self.under_way == 1
        if is_last:
            self.queue.leave()
        if self.under_way <= self._wanted:
            self._changed.set()

    def _tell(self) -> None:
        """Tell of those that have ended, in their order, in the greenlet that they are put for."""
        untold, results = self._untold, self.results
        while untold and results[untold[0].number] is not untold[0]:
            body = untold.popleft()
            put = self._put(body)
            if put.uri is None and body.end:  # its first try was the last, and has not failed
                put.uri = body.uri
            put.tell(results[body.number], body.ended_at)
