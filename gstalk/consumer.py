"""A pool to work with: connections that reserve jobs (`pool.asking`) feed handlers (`pool.crew`). Here is their life.

A `receive` goes through: **running**; **stopping**, nothing is reserved any more, handlers finish; **killing**, the
time for that is over; then what is left is settled, and each connection is read to its end, so that the server has
let go of everything when `receive` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event

from gstalk.config import LEFT_OUT, Config, Options, Unpack, configure
from gstalk.connection import forks, recall, threads
from gstalk.connection.calls import check_may_wait, join
from gstalk.connection.clock import monotonic
from gstalk.connection.critical import critical, refusal, section_of
from gstalk.connection.hooks import Hooks
from gstalk.connection.interrupts import CtrlC
from gstalk.errors import WrongHubError
from gstalk.job import Seconds
from gstalk.pool.asking import Asker
from gstalk.pool.crew import Crew
from gstalk.pool.handling import Handler, Handling
from gstalk.pool.keeper import Pool
from gstalk.pool.schedule import WatchList
from gstalk.protocol import checks
from gstalk.protocol.request import Request
from gstalk.traces import forgetful
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
        self._watch_list = WatchList(checks.check_tubes(tubes))
        self._handlers: dict[str, Handler] = {}  # those that `watch` was given
        self._hooks = Hooks(self._config)
        self._run: _Run | None = None
        self._was_run = False
        self._requests: list[float] = []  # stops that nothing has come of yet, in seconds; infinity: never
        self._connected = Event()

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is usable; `False` outside of `receive`."""
        return self._run is not None and self._run.pool.is_connected

    @property
    def tubes(self) -> list[str]:
        """The tubes that are watched; outside of `receive`, those that the next one will watch."""
        return list(self._watch_list.tubes)

    def watch(self, tube: str, handler: Handler | None = None) -> None:
        """Watch a tube more, on all connections, from their next reserve on; during a `receive` or before it.

        Of a tube that is watched already only the handler changes, if one is given.

        Args:
            tube: As `Conn.put` takes it.
            handler: For this tube's jobs. Needed where `receive` has a mapping from tube to handler that doesn't name
                the tube, and refused where it has one handler for all.

        Raises:
            InvalidArgumentError: The tube; or it has no handler, or one of its own beside the one for all.
            TypeError: The tube; or the handler, as in `receive`.
            WrongHubError: The `receive` runs in another thread.
            BlockingSwitchOutError: Nothing can wait here, in a signal handler for instance: spawn a greenlet for it.

        Blocks:
            During a `receive`, until each server that is connected has answered. If it is interrupted, the change is
            made all the same, and `tubes` tells so. Who isn't connected, or loses its connection, isn't waited for:
            its next connection watches the right tubes from the beginning.

        Protocol:
            ``watch <tube>`` -> ``WATCHING``. A connection that waits in a reserve is dialed anew; one whose server
            refuses is closed, and dialed anew.
        """
        tube = checks.check_tube(tube)
        if handler is not None:
            checks.check_callable("handler", handler, 1)

        def change(handling: Handling | None) -> None:
            if handling is not None:
                handling.watch(tube, handler or self._handlers.get(tube))
            if handler is not None:
                self._handlers[tube] = handler
            self._watch_list.watch(tube)

        self._change("watch", change)

    def ignore(self, tube: str) -> None:
        """Watch a tube no longer, on all connections, from their next reserve on; during a `receive` or before it.

        When this has returned, no more jobs of the tube are reserved. Jobs in progress are not affected: their
        handlers run to their end. To ignore a tube that isn't watched changes nothing.

        Args:
            tube: As `Conn.put` takes it.

        Raises:
            NotIgnoredError: It is the last one.
            InvalidArgumentError, TypeError: The tube.
            WrongHubError, BlockingSwitchOutError: As `watch`.

        Blocks:
            As `watch`.

        Protocol:
            ``ignore <tube>`` -> ``WATCHING``; connections as with `watch`.
        """
        tube = checks.check_tube(tube)

        def change(_: Handling | None) -> None:
            self._watch_list.ignore(tube)
            self._handlers.pop(tube, None)

        self._change("ignore", change)
        if self._run is not None and tube not in self._watch_list.tubes:
            self._run.forget(tube)

    @critical
    def _change(self, what: str, change: Callable[[Handling | None], None]) -> None:
        """Change the watch list; during a `receive`, wait until the servers have answered that they know."""
        run = self._run
        if run is None or run.is_copy:
            change(None)
            return
        run.check(what)
        with run.section:
            run.look_at_tubes_soon()  # first: a signal may strike below, and the change be made without being told
            before = self._watch_list.tubes
            change(run.handling)
            requests = run.follow(before)
        for request in requests:
            join(run.hub, request)  # if it fails, its connection is over, and the next one watches the right tubes

    def wait_connected(self, timeout: Seconds | None = None) -> bool:
        """Wait until a `receive` has a usable connection.

        Args:
            timeout: Seconds; `None`: for ever.

        Returns:
            Whether it has one.
        """
        seconds = None if timeout is None else checks.seconds("timeout", timeout)
        deadline = None if seconds is None else monotonic() + seconds
        threads.enter()  # a thread without a hub gets one here that ends with it
        while not self.is_connected:
            self._connected.clear()  # a connection that is up may not be usable
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            if self._run is not None:
                self._run.pool.check_may_wait()
            if not self._connected.wait(left):
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
                that names every tube watched, but for those whose handler `watch` was given. It must run to its end
                when it is called: no `async def`, no generator.

        Raises:
            RuntimeError: A `receive` of this Consumer is running.
            TypeError: A handler can't be called with one argument, or a call of it would run nothing.
            InvalidArgumentError: A tube has no handler, or one of its own beside the one for all.
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
        handling = Handling(handler, self._watch_list.tubes, self._handlers, self._config, self._hooks)
        self._handlers = {tube: given for tube, given in self._handlers.items() if not handling.names(tube)}
        self._was_run = True
        if self._requests:
            self._requests.clear()
            return
        with CtrlC() as ctrl_c:
            # A signal handler may call `stop` at any of these lines: the run looks at its requests when it begins.
            run = self._run = self._new_run(handling, ctrl_c)
            try:
                run.receive()
            finally:
                if self._run is run:  # else it is the copy of the parent's, and this process has begun its own
                    self._run = None
                    self._connected.clear()

    def _new_run(self, handling: Handling, ctrl_c: CtrlC) -> _Run:
        addresses, watch_list, config, hooks = self._addresses, self._watch_list, self._config, self._hooks
        return _Run(addresses, watch_list, config, hooks, handling, self._connected, self._requests, ctrl_c)

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


class _ForkedError(BaseException):
    """This is a child's copy of a `receive`."""


class _Run:
    """One `receive`. `is_copy`: it is a forked child's, and all of it is the parent's."""

    def __init__(
        self,
        addresses: list[Address],
        watch_list: WatchList,
        config: Config,
        hooks: Hooks,
        handling: Handling,
        connected: Event,
        requests: list[float],
        ctrl_c: CtrlC,
    ) -> None:
        self._config = config
        self.handling = handling
        self.hub = threads.enter()
        self.section = section_of(self.hub)
        self._crew = Crew(config, hooks, handling, self._look_again, self._interrupted)
        self._aside = handling.aside  # here also greenlets that tell of reserves which failed
        self._watch_list = watch_list
        self._asker = Asker(
            config,
            hooks,
            self._crew,
            watch_list,
            self._aside,
            lambda has: connected.set() if has else connected.clear(),
        )
        self._crew.on_free = self._asker.look_soon
        self._changed = Event()  # the receiving greenlet is to look
        self._interruptions: list[BaseException] = []  # of this `receive`; the first one is raised at its end
        self._stop_at: float | None = None  # when handlers are killed; infinity: never; None: not stopping
        self._requests = requests
        self.is_copy = False
        self._leaving: list[gevent.Greenlet[..., Any]] = []  # of the servers, since `_finished_at`
        self._finished_at = 0.0
        self._async = self.hub.loop.async_(ref=False)
        self._async.start(self._changed.set)
        self._ctrl_c = ctrl_c
        ctrl_c.working, ctrl_c.wake = self._crew.working, self.look
        self.pool = Pool(addresses, config, watch_list.tubes, hooks, self._asker.up, self._asker.down)
        forks.register("consumer", self, _Run._forked)
        threads.register(self, _Run._thread_ended)

    # -- the receiving greenlet --------------------------------------------------------------------------------

    def receive(self) -> None:
        try:
            while not self._has_ended():
                pass
        except _ForkedError:
            self._until_forker_ended()
        finally:
            if not self.is_copy:  # where a signal strikes between two of these rounds, this has still to be done
                self._crew.dismiss()
                self.pool.cut()
            self.pool.want(self, False)
            self._ctrl_c.wake = None
            self._async.close()
            self._asker.stop_timer()
            self._aside.kill(block=False)
            self._crew.tell_nobody()
        if self._interruptions:
            interruptions, self._interruptions = self._interruptions, []
            try:
                raise interruptions[0]
            finally:
                del interruptions  # the traceback would hold the frame, and the frame the error

    def _has_ended(self) -> bool:
        """Go through all of it; or, where that is interrupted, note it and tell that it is to be gone through again.

        An interruption means stop, and a second one stop at once. What has been done is not done a second time.
        """
        try:
            self.pool.want(self, True)  # an idle Consumer keeps the process alive
            self._on_request()
            self._until_stopped()
            self.pool.stop_dialing()
            self._asker.end()
            self._until_finished()
            self._until_gone()
        except BaseException as error:
            if self.is_copy:
                raise
            self._interrupted(error)
            return False
        return True

    def _until_stopped(self) -> None:
        while self._stop_at is None:
            self._crew.fill()
            self._asker.look_soon()  # what has ended a greenlet may have hit it before it told that it is free
            self._wait_for_change()

    def _until_finished(self) -> None:
        """Let handlers finish; when their time is over, kill them, and give their jobs back."""
        while len(self._crew):
            self._crew.dismiss()
            assert self._stop_at is not None
            left = self._stop_at - monotonic()
            if left <= 0 and self.handling.is_killing:
                return  # they had their last words
            if left <= 0:
                self._crew.kill()
                self._stop_at = monotonic() + LAST_WORDS
                continue
            self._wait_for_change(min(left, 3600.0))

    def _until_gone(self) -> None:
        """Take leave of the servers, so that they have let go; what takes too long is cut."""
        if not self._leaving:
            self._finished_at = monotonic()
            self._leaving = [*self._aside, *(gevent.spawn(connection.leave) for connection in self.pool.connections)]
        for greenlet in self._leaving:
            greenlet.rawlink(self._look_again)
        while not all(greenlet.ready() for greenlet in self._leaving):
            assert self._stop_at is not None
            left = max(self._stop_at, self._finished_at) + FAREWELL - monotonic()
            if left <= 0:
                break
            self._wait_for_change(min(left, 3600.0))
        for connection in list(self.pool.connections):
            connection.cut()
        # One of them may be in a user's hook.
        gevent.joinall([*self._leaving, *self._aside, *self.pool.keepers], timeout=FAREWELL)

    def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.wait(seconds)
        self._changed.clear()
        if self.is_copy:
            raise _ForkedError
        self._on_request()

    def _look_again(self, _: object = None) -> None:
        """Have the receiving greenlet look: a greenlet of the crew is gone, or another one."""
        self._changed.set()

    # -- the tubes ---------------------------------------------------------------------------------------------

    def check(self, what: str) -> None:
        """Refuse a change of the tubes where one can't wait for the answers, before anything has changed."""
        if get_hub() is not self.hub:
            why = "this Consumer's receive runs in another thread; call it there, in a handler for instance"
            raise WrongHubError(f"{what}: {why}")
        check_may_wait(self.hub)
        if recall.is_under_way_here():
            raise refusal()
        if self.section.owner is not None:
            self.section.wait()

    def look_at_tubes_soon(self) -> None:
        """Have the asker compare what is watched with what each connection was told, in the hub."""
        self._asker.look_soon()

    def follow(self, before: tuple[str, ...]) -> list[Request]:
        """The watch list was this and may have changed: tell all connections, and return what was sent."""
        self.pool.tubes = self._watch_list.tubes
        return self._asker.follow(before)

    def forget(self, tube: str) -> None:
        """All have answered that they ignore a tube. Its handler may go, unless a job is there that may need it."""
        if not self._crew.is_behind:
            self.handling.forget(tube)

    def _thread_ended(self) -> list[gevent.Greenlet[..., Any]]:
        """The thread has ended, and left a `receive` in a greenlet that nobody wakes again: its jobs are to go back."""
        threads.close_watchers(self.hub, [self._async])
        self._asker.abandon()
        return self.pool.abandon()

    # -- in a forked child -------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In a child: nothing is reserved or handled here, and the copy of `receive` is to end."""
        self.is_copy = self.handling.is_copy = self._crew.is_copy = True
        self._asker.is_over = True
        self._stop_at = None
        self._requests.clear()
        if forks.is_here(self.hub):
            self._async.close()
            self._asker.stop_timer()
            self._crew.dismiss()
            self._changed.set()

    def _until_forker_ended(self) -> None:
        """Wait for the greenlet that forked: what stands behind `receive` may well be the end of the process.

        It does its work in this child, and ends it as it likes. One that has no end to wait for is the main greenlet's;
        and a `stop` in the child means that nobody is to be waited for.
        """
        forker = forks.forker()
        if isinstance(forker, gevent.Greenlet) and forker is not getcurrent():
            forker.rawlink(self._look_again)
            while not forker.ready() and self._stop_at is None:
                self._changed.wait()
                self._changed.clear()

    # -- stopping ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the requests to stop. From anywhere: another thread, a signal handler, a handler."""
        if self.is_copy:
            self._on_request()
        else:
            self._async.send()

    def _on_request(self) -> None:
        while self._requests:
            self._stop_within(self._requests[0])
            del self._requests[:1]  # last: a signal that strikes before must not lose it
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
        self._asker.is_over = self._crew.is_leaving = True
        self._changed.set()
