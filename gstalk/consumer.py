"""A pool to work with: connections that reserve jobs feed handlers, which run in the greenlets of a gevent Pool.

`Asking` in `schedule` decides which connection asks for how many jobs; here that is carried out. A job goes from the
reply straight to a waiting greenlet. All of that happens in the hub, so nothing can come between.

A `receive` goes through: **running**; **stopping**, nothing is reserved any more, handlers finish; **killing**, the
time for that is over; then what is left is settled, and each connection is read to its end, so that the server has
let go of everything when `receive` returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.pool import Pool as GreenletPool

from gstalk import _forks
from gstalk._calls import wait_for, whole
from gstalk._clock import monotonic
from gstalk._critical import section_of
from gstalk._handling import Handler, Handling
from gstalk._hooks import Hooks
from gstalk._interrupts import CtrlC
from gstalk._link import Link
from gstalk._ruins import bury_ruined
from gstalk._traces import forget, forgetful
from gstalk.config import LEFT_OUT, Config, Options, Unpack, configure
from gstalk.errors import DeadlineSoonError, DisconnectedError, ProtocolError
from gstalk.job import Job, Seconds
from gstalk.pool import Pool, Server
from gstalk.protocol import checks, commands
from gstalk.protocol.session import Call, Slot
from gstalk.schedule import SILENT, Asking, Lane
from gstalk.uri import Address, validate_uris

__all__ = ["Consumer"]

LAST_WORDS = 0.75  # seconds that killed handlers get to end
FAREWELL = 1.0  # seconds that a server has to let go, at least


@forgetful()
class Consumer:
    """A pool of connections to work jobs off with.

    Args:
        uris: The servers, or one.
        tubes: The tubes to watch, or one.
        config: What to start from.
        **options: Fields of `Config`, which override it.

    Raises:
        TypeError, InvalidArgumentError: A URI, a tube or an option.
    """

    def __init__(
        self,
        uris: str | Iterable[str],
        tubes: str | Iterable[str],
        config: Config | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._config = configure(config, options)
        self._addresses = validate_uris(uris)
        self._tubes = checks.check_tubes(tubes)
        self._hooks = Hooks(self._config)
        self._run: _Run | None = None
        self._was_run = False
        self._requests: list[float] = []  # stops that nothing has come of yet, in seconds; infinity: never
        self._connected = Event()

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is usable; `False` outside of `receive`."""
        return self._run is not None and self._run.pool.is_connected

    def wait_connected(self, timeout: Seconds | None = None) -> bool:
        """Wait until a `receive` has a usable connection.

        Args:
            timeout: Seconds; `None`: for ever.

        Returns:
            Whether it has one.
        """
        seconds = None if timeout is None else checks.seconds("timeout", timeout)
        deadline = None if seconds is None else monotonic() + seconds
        while not self.is_connected:
            self._connected.clear()  # a connection that is up may not be usable
            left = None if deadline is None else deadline - monotonic()
            if (left is not None and left <= 0) or not self._connected.wait(left):
                break
        return self.is_connected

    def receive(self, handler: Handler | Mapping[str, Handler]) -> None:
        """Connect, and call the handler for every job reserved, until `stop` is called.

        The handler finishes its job. One that returns without doing so, or raises, has failed: `Config.error_func` is
        told, and `Config.retry` says what becomes of the job. It may raise `Retry` or `Bury` instead. When the job's
        attempts are used up, `Config.given_up_func` is called before it is buried or deleted.
        Each job runs in a fresh copy of the `contextvars` context in which this was called.

        Args:
            handler: Called with each `Job`, in one of `num_greenlets` greenlets; or a mapping from tube to handler
                that names every tube watched. It must run to its end when it is called: no `async def`, no generator.

        Raises:
            RuntimeError: A `receive` of this Consumer is running.
            TypeError: A handler can't be called with one argument, or a call of it would run nothing.
            InvalidArgumentError: A tube has no handler.
            KeyboardInterrupt: Ctrl-C was pressed, or a handler raised it; as `stop`.

        Blocks:
            Until after `stop` all handlers have finished and the server has let go of the connections. If it is
            interrupted itself, that counts as `stop`, a second interruption as `stop(0)`; then the first one goes on.
            In the main thread, where SIGINT has Python's handler, Ctrl-C meanwhile is raised in a handler that
            computes, never in gstalk's own work.
            In a forked child the copy of a `receive` returns when the greenlet that forked has ended.
        """
        if self._run is not None and not self._run.is_copy:
            raise RuntimeError("a receive of this Consumer is running already")
        if self._was_run:
            self._requests.clear()  # made after the last one had returned
        handling = Handling(handler, self._tubes, self._config, self._hooks)
        self._was_run = True
        if self._requests:
            self._requests.clear()
            return
        with CtrlC() as ctrl_c:
            # A signal handler may call `stop` at any of these lines: the run looks at its requests when it begins.
            run = self._run = _Run(
                self._addresses,
                self._tubes,
                self._config,
                self._hooks,
                handling,
                self._connected,
                self._requests,
                ctrl_c,
            )
            try:
                run.receive()
            finally:
                if self._run is run:  # else it is the copy of the parent's, and this process has begun its own
                    self._run = None
                    self._connected.clear()

    def stop(self, timeout: Seconds | None = LEFT_OUT) -> None:
        """Have `receive` reserve no more jobs, let its handlers finish, and return. Returns at once.

        May be called from any greenlet, a handler, a signal handler or another thread, and more than once: a shorter
        time wins. Before the first `receive` it makes that return at once; after one has returned it does nothing.

        Args:
            timeout: Seconds until handlers that still run are killed and their jobs released. Left out:
                `Config.stop_timeout`; `None`: never.
        """
        limit = self._config.stop_timeout if timeout is LEFT_OUT else timeout
        seconds = None if limit is None else checks.seconds("timeout", limit)
        self._requests.append(float("inf") if seconds is None else seconds)
        run = self._run
        if run is not None:
            run.look()


class _ConsumerLane(Lane):
    """A connection of a Consumer. `fresh`: how many jobs more are looked at before their handler runs."""

    def __init__(self, server: str, link: Link, fresh: int) -> None:
        super().__init__(server)
        self.link = link
        self.fresh = fresh
        self.wait: Slot | None = None


class _ForkedError(BaseException):
    """This is a child's copy of a `receive`."""


class _Run:
    """One `receive`. `is_copy`: it is a forked child's, and all of it is the parent's."""

    def __init__(
        self,
        addresses: list[Address],
        tubes: list[str],
        config: Config,
        hooks: Hooks,
        handling: Handling,
        connected: Event,
        requests: list[float],
        ctrl_c: CtrlC,
    ) -> None:
        self._config = config
        self._hooks = hooks
        self._handling = handling
        self._hub = get_hub()
        self._section = section_of(self._hub)
        self._context = copy_context()
        self._asking = Asking(config.num_greenlets)
        self._lanes: dict[Link, _ConsumerLane] = {}
        self._idle: list[Call] = []  # greenlets that wait for a job
        self._handed: list[Call] = []  # those that were handed one, and may not have wakened yet
        self._jobs: deque[tuple[_ConsumerLane, Job]] = deque()  # reserved while a killed greenlet was being replaced
        self._current: dict[Any, tuple[_ConsumerLane, Job]] = {}  # what each greenlet works at
        self._greenlets = GreenletPool(config.num_greenlets)
        self._aside = handling.aside  # here also greenlets that tell of reserves which failed
        self._pump_due = False
        self._timer: Any = None
        self._changed = Event()  # the receiving greenlet is to look
        self._connected = connected
        self._interruptions: list[BaseException] = []  # of this `receive`; the first one is raised at its end
        self._stop_at: float | None = None  # when handlers are killed; infinity: never; None: not stopping
        self._requests = requests
        self.is_copy = False
        self._leaving: list[gevent.Greenlet[..., Any]] = []  # of the servers, since `_finished_at`
        self._finished_at = 0.0
        self._async = self._hub.loop.async_(ref=False)
        self._async.start(self._on_request)
        self._ctrl_c = ctrl_c
        ctrl_c.working, ctrl_c.wake = self._current, self.look
        self.pool = Pool(addresses, config, tuple(tubes), hooks, self._up, self._down)
        _forks.register("consumer", self, _Run._forked)

    # -- the receiving greenlet --------------------------------------------------------------------------------

    def receive(self) -> None:
        self.pool.want(1)  # an idle Consumer keeps the process alive
        try:
            self._on_request()
            self._guarded(self._until_stopped)
            self._stop_asking()
            self._guarded(self._until_finished)
            self._guarded(self._until_gone)
        except _ForkedError:
            self._until_forker_ended()
        finally:
            self.pool.want(-1)
            self._ctrl_c.wake = None
            self._async.close()
            self._stop_timer()
            self._aside.kill(block=False)
        if self._interruptions:
            interruptions, self._interruptions = self._interruptions, []
            try:
                raise interruptions[0]
            finally:
                del interruptions  # the traceback would hold the frame, and the frame the error

    def _guarded(self, phase: Any) -> None:
        """Carry out a phase; an interruption means stop, a second one stop at once, and the first is kept."""
        while True:
            try:
                phase()
                return
            except BaseException as error:
                if self.is_copy:
                    raise
                self._interrupted(error)

    def _until_stopped(self) -> None:
        while self._stop_at is None:
            while len(self._greenlets) < self._config.num_greenlets and self._stop_at is None:
                self._greenlets.spawn(self._work).rawlink(self._ended)
            self._wait_for_change()

    def _until_finished(self) -> None:
        """Let handlers finish; when their time is over, kill them, and give their jobs back."""
        while len(self._greenlets):
            for call in self._idle:
                call.result = None
                self._wake(call)
            self._idle.clear()
            assert self._stop_at is not None
            left = self._stop_at - monotonic()
            if left <= 0 and self._handling.is_killing:
                return  # they had their last words
            if left <= 0:
                self._handling.is_killing = True
                for lane, job in list(self._current.values()):
                    lane.link.return_job(job)
                self._greenlets.kill(block=False)
                self._stop_at = monotonic() + LAST_WORDS
                continue
            self._wait_for_change(min(left, 3600.0))

    def _until_gone(self) -> None:
        """Take leave of the servers, so that they have let go; what takes too long is cut."""
        if not self._leaving:
            self._finished_at = monotonic()
            self._leaving = list(self._aside)
            for greenlet in self._leaving:
                greenlet.rawlink(self._ended)
            for link in self.pool.links:
                self._leaving.append(gevent.spawn(link.leave))
                self._leaving[-1].rawlink(self._ended)
        while not all(greenlet.ready() for greenlet in self._leaving):
            assert self._stop_at is not None
            left = max(self._stop_at, self._finished_at) + FAREWELL - monotonic()
            if left <= 0:
                break
            self._wait_for_change(min(left, 3600.0))
        for link in list(self.pool.links):
            link.cut()
        # One of them may be in a user's hook.
        gevent.joinall([*self._leaving, *self._aside, *self.pool.keepers], timeout=FAREWELL)

    def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.wait(seconds)
        self._changed.clear()
        if self.is_copy:
            raise _ForkedError

    def _forked(self) -> None:
        """In a child: nothing is reserved or handled here, and the copy of `receive` is to end."""
        self.is_copy = self._handling.is_copy = True
        self._stop_at = None
        self._requests.clear()
        if _forks.is_here(self._hub):
            self._async.close()
            self._stop_timer()
            for call in self._idle:
                call.result = None
                self._wake(call)
            self._changed.set()

    def _until_forker_ended(self) -> None:
        """Wait for the greenlet that forked: what stands behind `receive` may well be the end of the process.

        It does its work in this child, and ends it as it likes. One that has no end to wait for is the main greenlet's;
        and a `stop` in the child means that nobody is to be waited for.
        """
        forker = _forks.forker()
        if isinstance(forker, gevent.Greenlet) and forker is not getcurrent():
            forker.rawlink(self._ended)
            while not forker.ready() and self._stop_at is None:
                self._changed.wait()
                self._changed.clear()

    def _wake(self, call: Call) -> None:
        waiter = call.waiter
        if waiter is not None:
            self._hub.loop.run_callback(_switch, call)

    # -- stopping ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the requests to stop. From anywhere: another thread, a signal handler, a handler."""
        if self.is_copy:
            self._on_request()
        else:
            self._async.send()

    def _on_request(self) -> None:
        while self._requests:
            self._stop_within(self._requests.pop(0))
        for error in self._ctrl_c.take():
            self._interrupted(error)

    def _interrupted(self, error: BaseException) -> None:
        """Stop because of an interruption; at once, if it is the second one."""
        if not any(error is each for each in self._interruptions):  # Ctrl-C is told of, and then leaves a handler, too
            self._interruptions.append(error)
            self._stop_within(self._config.stop_timeout if len(self._interruptions) == 1 else 0.0)

    def _stop_within(self, seconds: Any) -> None:
        at = float("inf") if seconds is None else monotonic() + float(seconds)
        self._stop_at = at if self._stop_at is None else min(self._stop_at, at)
        self._changed.set()

    def _stop_asking(self) -> None:
        """No more jobs: waits leave at once, and an ask that still finds one gives it back."""
        self.pool.stop_dialing()
        self._stop_timer()
        for lane in list(self._lanes.values()):
            if lane.wait is not None:
                lane.wait.duty = None
                lane.wait = None
                lane.link.leave_wait()

    # -- handlers ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """A greenlet of the Pool: job after job."""
        me = getcurrent()
        while not self.is_copy:
            me.gr_context = self._context.copy()  # what a handler sets there is gone with its job
            if self._jobs:
                item = self._jobs.popleft()
            elif self._stop_at is not None:
                return
            else:
                call = Call()
                self._idle.append(call)
                try:
                    item = wait_for(self._hub, call)
                except BaseException as error:
                    if call in self._idle:
                        self._idle.remove(call)
                    elif isinstance(call.result, tuple):  # hit with a job in its hands, before it could look
                        self._jobs.append(call.result)
                    if isinstance(error, (gevent.GreenletExit, KeyboardInterrupt)):
                        raise
                    self._hooks.error(error, "a handler left this behind; it hit a greenlet that waited for a job")
                    continue
                if item is None:
                    return
            if _forks.under_way:
                _forks.look()
            if self.is_copy:  # the job was handed over before the fork, and the parent handles it
                return
            lane, job = item
            self._current[me] = item
            look = lane.fresh > 0
            lane.fresh -= look
            try:
                self._handling.handle(lane.link, job, look)
            except KeyboardInterrupt as error:
                if self.is_copy:
                    raise
                self._interrupted(error)
            finally:
                del self._current[me]
                self._pump_soon()

    def _ended(self, greenlet: Any) -> None:
        """A greenlet is gone; one of the Pool's is replaced by the receiving one."""
        if self._jobs and self._stop_at is not None and not self.is_copy:
            for lane, job in self._jobs:
                lane.link.give_back(job)
            self._jobs.clear()
        if isinstance(greenlet.value, BaseException):  # what killed it, and it hold each other
            forget(greenlet.value)
        self._changed.set()

    # -- connections -------------------------------------------------------------------------------------------

    def _up(self, server: Server, link: Link) -> None:
        self._lanes[link] = lane = _ConsumerLane(server.uri, link, self._config.num_greenlets)
        self._asking.lanes.append(lane)
        link.reserved.on_settled = self._pump_soon  # one that holds no job any more may wait on its server
        self._connected.set()
        self._pump_soon()

    def _down(self, server: Server, link: Link) -> None:
        lane = self._lanes.get(link)
        if lane in self._asking.lanes:  # else a signal has struck here before
            self._asking.lanes.remove(lane)
        self._lanes.pop(link, None)
        if not self._lanes:
            self._connected.clear()
        self._pump_soon()

    # -- asking ------------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        """Look once in this turn of the loop at what to ask, however many handlers have ended in it."""
        if not self._pump_due:
            for _ in range(2):  # a signal may strike the first one before its first line
                self._hub.loop.run_callback(self._pump)
            self._pump_due = True

    def torn(self, error: BaseException) -> None:
        """A signal's exception has hit the asking: its counts can't be trusted, so every connection begins anew."""
        self._pump_due = False
        for link in list(self._lanes):
            link.pipe.torn(error)
        self._pump_soon()

    @whole
    def _pump(self) -> None:
        if not self._pump_due:
            return
        self._pump_due = False
        if not self._section.is_free:
            self._pump_soon()
            return
        if self._stop_at is not None or self.pool.is_stopped:
            return
        now = monotonic()
        any_held = False
        for lane in list(self._lanes.values()):  # a send that fails takes its connection out
            pipe = lane.link.pipe
            # Late, or so it seems: the hub may have been blocked, and the answer be there.
            if lane.asks and lane.is_late(now):
                pipe.catch_up()
            lane.held = bool(lane.link.reserved.by_id)
            lane.busy = bool(pipe.slots) or not pipe.attached
            any_held |= lane.held
            if lane.held and not lane.busy and now - pipe.read_at > SILENT:
                # The server forgets to expire a job while its connection is silent; and a dead line shows itself.
                pipe.append(commands.plain(commands.LIST_TUBE_USED), pipe.slot(commands.LIST_TUBE_USED))
        self._count_running()
        actions, again = self._asking.decide(now)
        for what, each, count in actions:
            assert isinstance(each, _ConsumerLane)
            if what == "ask":
                each.asks += count
                for _ in range(count):
                    each.link.ask(0, partial(self._got, each))
            elif what == "wait":
                each.asks += 1
                each.waiting = True
                seconds = int(self._config.reserve_timeout)  # type: ignore[arg-type]
                each.wait = each.link.ask(seconds, partial(self._got, each), partial(self._recall, each))
            else:
                self._recall(each)
        self._stop_timer()
        if any_held:
            again = min(again, SILENT)
        if again < float("inf"):
            self._timer = self._hub.loop.timer(again, again)  # again, if a signal strikes before the first line
            self._timer.start(self._on_timer, update=True)

    def _count_running(self) -> None:
        self._handed = [call for call in self._handed if call.waiter is not None]
        self._asking.running = len(self._current) + len(self._jobs) + len(self._handed)

    @whole
    def _on_timer(self) -> None:
        self._stop_timer()
        self._pump_due = True
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _recall(self, lane: _ConsumerLane) -> None:
        """End a wait: its permit is needed elsewhere, or a command is to go out on its connection."""
        if lane.wait is not None:
            lane.wait.duty = None
            lane.wait = None
            lane.link.redial()
            self._asking.recalled(lane, monotonic())
            self._pump_soon()

    def _got(self, lane: _ConsumerLane, slot: Slot) -> None:
        """In the hub: the answer to an ask. A job goes to a greenlet that waits for one."""
        now = lane.link.pipe.read_at
        waited, lane.wait = lane.waiting, None
        if slot.error is not None:
            if isinstance(slot.error, DeadlineSoonError):
                self._asking.deadline_soon(lane, now)
            else:
                self._asking.answered(lane, False, now)
                if not isinstance(slot.error, DisconnectedError):
                    self._aside.spawn(self._reserve_failed, lane, slot.error)
        elif slot.result is None:
            if waited:
                self._asking.slice_over(lane, now)
            else:
                self._asking.answered(lane, False, now)
        else:
            was_overdue = lane.overdue > 0
            self._asking.answered(lane, True, now)
            job: Job = slot.result
            if self._stop_at is not None:
                lane.link.give_back(job)
                return
            if was_overdue:
                self._count_running()
                if not self._asking.has_room():  # its permit has been used elsewhere
                    lane.link.give_back(job)
                    self._pump_soon()
                    return
            while self._idle and self._idle[-1].waiter is None:  # a signal has struck below, and he is at work
                self._idle.pop()
            if self._idle:
                self._idle[-1].result = (lane, job)
                self._handed.append(self._idle[-1])
                lane.link.pipe.complete(self._idle[-1])
                self._idle.pop()  # last: a signal that comes between must not lose him
            else:
                self._jobs.append((lane, job))
        self._pump_soon()

    def _reserve_failed(self, lane: _ConsumerLane, error: BaseException) -> None:
        """Tell; and put a job that the server has ruined out of the way, or nobody would get beyond it."""
        if self.is_copy:
            return
        message = f"reserve at {lane.server} failed"
        known: dict[str, Any] = {"uri": lane.server}
        if isinstance(error, ProtocolError) and error.job_id is not None:
            link, job_id = lane.link, error.job_id
            if bury_ruined(self._hub, link.address, self._config, link.server.id, job_id):
                message += f"; job {job_id} has no end, the server has ruined it: buried"
                known |= {"job_id": job_id, "outcome": "buried"}
        self._hooks.error(error, message, **known)


def _switch(call: Call) -> None:
    waiter, call.waiter = call.waiter, None
    if waiter is not None:
        waiter.switch()
