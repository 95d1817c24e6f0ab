"""The greenlets of a Consumer that run handlers: each lives in a gevent Pool and takes one job after the other.

A job goes from the reply straight to a greenlet that waits for one (`offer`), in the hub, so nothing can come between.
A greenlet that was killed is replaced (`fill`), so the crew never shrinks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from gevent import get_hub, getcurrent
from gevent.pool import Pool as GreenletPool

from gstalk.config import Config
from gstalk.connection import forks
from gstalk.connection.calls import join
from gstalk.connection.connection import Connection
from gstalk.connection.critical import section_of
from gstalk.connection.hooks import Hooks
from gstalk.connection.interrupts import STOPS
from gstalk.connection.loop import wake
from gstalk.job import Job
from gstalk.pool.handling import Handling
from gstalk.pool.permits import Source
from gstalk.protocol.request import Outcome, Request
from gstalk.traces import forget

__all__ = ["Crew", "JobSource"]


class JobSource(Source):
    """A connection that jobs come from.

    Attributes:
        connection: The connection.
        tubes: What it will watch when all that has been sent is answered.
        looks: How many jobs more of it the server is asked about before their handler runs.
        wait: The reserve that waits on its server.
    """

    def __init__(self, server: str, connection: Connection, tubes: tuple[str, ...], looks: int) -> None:
        super().__init__(server)
        self.connection = connection
        self.tubes = tubes
        self.looks = looks
        self.wait: Request | None = None

    @property
    def is_idle(self) -> bool:
        pipe = self.connection.pipe
        return pipe.attached and not (pipe.requests or self.connection.reserved.by_id)


class Crew:
    """The greenlets of one `receive`.

    Args:
        config: How many there are.
        hooks: Told of what hits a greenlet that waits for a job.
        handling: What happens to a job.
        on_end: Called when a greenlet has ended; must not switch.
        on_interruption: Called with the `KeyboardInterrupt` that has left a handler; must not switch.

    Attributes:
        on_free: Called when a handler has ended; must not switch.
        working: What each greenlet works at: a job, and the connection that it came from.
        is_leaving: No more jobs come, and the greenlets end.
        is_copy: This is a forked child's copy: all jobs are the parent's.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks,
        handling: Handling,
        on_end: Callable[[], None],
        on_interruption: Callable[[BaseException], None],
    ) -> None:
        self.working: dict[Any, tuple[JobSource, Job]] = {}
        self.is_leaving = False
        self.is_copy = False
        self._size = config.num_greenlets
        self._hooks = hooks
        self._handling = handling
        self.on_free: Callable[[], None] = _nothing
        self._on_end = on_end
        self._on_interruption = on_interruption
        self._hub = get_hub()
        self._context = copy_context()
        self._greenlets = GreenletPool(config.num_greenlets)
        self._idle: list[Outcome] = []  # greenlets that wait for a job
        self._handed: list[Outcome] = []  # those that were handed one, and may not have wakened yet
        self._jobs: deque[tuple[JobSource, Job]] = deque()  # reserved while a killed greenlet was being replaced

    def __len__(self) -> int:
        """How many greenlets there are."""
        return len(self._greenlets)

    @property
    def running(self) -> int:
        """How many handlers are at work, or about to be."""
        self._handed = [call for call in self._handed if call.waiter is not None]
        return len(self.working) + len(self._jobs) + len(self._handed)

    @property
    def is_behind(self) -> bool:
        """Whether there is a job that no greenlet has begun to look at."""
        return self.running > len(self.working)

    def fill(self) -> None:
        """Have as many greenlets as there are to be."""
        while len(self._greenlets) < self._size and not self.is_leaving:
            self._greenlets.spawn(self._work).rawlink(self._ended)

    def offer(self, source: JobSource, job: Job) -> None:
        """In the hub: hand a job to a greenlet."""
        idle = self._idle
        while idle and idle[-1].waiter is None:  # a signal has struck below, and he is at work
            idle.pop()
        if idle:
            call = idle[-1]
            call.result = (source, job)  # `succeed`, without a call
            source.connection.pipe.complete(call)
            self._handed.append(call)  # not before that: a signal between would have him count, and never wakened
            idle.pop()  # last: a signal that comes between must not lose him
        else:
            self._jobs.append((source, job))

    def dismiss(self) -> None:
        """Have those leave that wait for a job, and the others when their handlers have ended."""
        self.is_leaving = True
        for call in self._idle:
            call.succeed()
            if call.waiter is not None:
                self._hub.loop.run_callback(wake, section_of(self._hub), call)
        self._idle.clear()

    def kill(self) -> None:
        """Kill those that still work, and give their jobs back."""
        self._handling.is_killing = True
        for source, job in list(self.working.values()):
            source.connection.return_job(job)
        self._greenlets.kill(block=False)

    def tell_nobody(self) -> None:
        """The `receive` is over. It refers to this crew, which would keep it."""
        self.on_free = self._on_end = _nothing
        self._on_interruption = _nothing

    def _work(self) -> None:
        """A greenlet of the Pool: job after job. What ends it is seen to in `_ended`."""
        me = getcurrent()
        while not self.is_copy:
            me.gr_context = self._context.copy()  # what a handler sets there is gone with its job
            if self._jobs:
                self.working[me] = self._jobs[0]
                self._jobs.popleft()  # last: a signal that comes between must not lose it
            elif self.is_leaving:
                return
            else:
                self._wait(me)
            if forks.under_way:
                forks.look()
            if me not in self.working:
                continue
            if self.is_copy:  # the job was handed over before the fork, and the parent handles it
                return
            source, job = self.working[me]
            look = source.looks > 0
            source.looks -= look
            try:
                self._handling.handle(source.connection, job, look)
            except KeyboardInterrupt as error:
                if self.is_copy:
                    raise
                source.connection.return_job(job)  # if it has no fate: it may have struck beside the handler's call
                self._on_interruption(error)
            del self.working[me]
            self.on_free()

    def _wait(self, me: Any) -> None:
        """Wait for a job, and note it in `working`. It may come back without one."""
        call = Outcome()
        self._idle.append(call)
        try:
            join(self._hub, call)
            if call.result is not None:
                self.working[me] = call.result
        except BaseException as error:
            if call in self._idle:
                self._idle.remove(call)
            elif isinstance(call.result, tuple) and me not in self.working:  # hit with a job in its hands
                self._jobs.append(call.result)
            if isinstance(error, STOPS):
                raise
            self._hooks.error(error, "a handler left this behind; it hit a greenlet that waited for a job")

    def _ended(self, greenlet: Any) -> None:
        """A greenlet is gone."""
        item = self.working.pop(greenlet, None)
        # A kill's or a signal's work: the job goes back if it has no fate, and if it doesn't still stand in line.
        if item is not None and item not in self._jobs and not self.is_copy:
            source, job = item
            source.connection.give_back(job)
        if self._jobs and self.is_leaving and not self.is_copy:
            for source, job in self._jobs:
                source.connection.give_back(job)
            self._jobs.clear()
        if isinstance(greenlet.value, BaseException):  # what killed it, and it hold each other
            forget(greenlet.value)
        self._on_end()


def _nothing(*_: object) -> None:
    pass
