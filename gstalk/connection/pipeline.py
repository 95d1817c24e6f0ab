"""One connection's traffic: many greenlets' commands out, their replies back in.

The rules, which everything above stands on:

1. One place reads: an `io` watcher's callback, in the hub. It takes all complete replies of a read, lets `Session`
   match them, carries out their duties, and then switches to the greenlets that wait, one after the other.
2. Nobody's send can be interrupted: `append` puts the bytes into a buffer and the slot into the FIFO, and nothing
   switches in between. The buffer goes out once per turn of the event loop, so that all greenlets which are ready in
   that turn share one `send`; on an idle connection it goes out at once, so that a lone greenlet pays no latency.
   While replies stream in and the server has more to answer than has gathered, the buffer waits for the next ones, a
   millisecond at most: the server loses nothing by it, and a send for each half of what is in flight instead of one
   for every other command made puts from 64 greenlets a tenth faster.
   What a full socket doesn't take goes out when it is writable again. There is no writer greenlet.
3. A caller's `Timeout`, kill or Ctrl-C therefore only ever hits its wait. The slot stays, its reply is read and
   dropped, its duty is done. Nobody else notices.
4. What runs in the hub never waits, never calls a user's hook, and lets no exception out.
5. After a switch anything may have happened: the connection closed, failed, forked. Look again.
6. A signal is no switch: Ctrl-C may hit any line. Where it would leave a command or a reply half done, the connection
   ends (`torn`); nobody is left waiting.

States: **corked** (no transport yet: commands gather), **open**, **failed** (`failure` says why; every slot was told).
A pipeline never comes back from failed. `clear` is the one flag that the hot path looks at: commands may be appended.

A connection that makes no progress (`protocol.progress`) for `conn_timeout` is closed. One timer looks at that when
the time could be over, instead of being set anew for each command; and it reads what the kernel already holds before it
calls anything late.

Nothing here refers to the Conn, but through the duties of commands in flight: so a Conn that nobody holds is
collected, its finalizer calls `fail`, and the socket closes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import GreenletExit, getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

from gstalk.connection import forks, threads
from gstalk.connection.calls import wait_for, whole
from gstalk.connection.clock import monotonic
from gstalk.connection.critical import section_of
from gstalk.connection.transport import READ, WRITE, Transport
from gstalk.errors import (
    CommandTimeoutError,
    ConnectionClosedError,
    ConnectionLostError,
    DisconnectedError,
)
from gstalk.protocol.commands import Command
from gstalk.protocol.progress import UNLIMITED, Progress
from gstalk.protocol.session import PENDING, Call, Session, Slot, lost
from gstalk.traces import bare

__all__ = ["Pipeline"]

MAX_SLOTS = 1024  # commands in flight: memory stays bounded, and more would not be faster
MAX_BYTES = 1 << 20  # bytes waiting to be sent
LARGE = 65536  # bytes of a write that may take longer on its way than a reply may
HOLD = 0.001  # seconds for which commands may be kept to share a send


class Pipeline:
    """The commands in flight on one connection.

    Args:
        uri: For messages.
        hub: The hub that this connection belongs to.
        conn_timeout: Seconds without progress after which the connection is closed; `None`: no limit.
    """

    __slots__ = (
        "__weakref__ _appended _flush_due _held_back _holder _holding "
        "_limit _on_end _out _progress _reader _room _timer _transport _wake_due _writer clear "
        "conn_timeout failure hub on_failure read_at section session slots uri"
    ).split()

    def __init__(self, uri: str, hub: Hub, conn_timeout: float | None) -> None:
        self.uri = uri
        self.hub = hub
        self.section = section_of(hub)
        self.conn_timeout = conn_timeout
        self.clear = True
        self.failure: tuple[type[DisconnectedError], str, BaseException | None] | None = None
        self.on_failure: Callable[[], None] | None = None
        self.read_at = 0.0
        self.session = Session(uri)
        self.slots = self.session.slots
        self._out: list[bytes] = []
        self._appended = 0  # where the stream ends that has been appended
        self._limit = MAX_BYTES  # where it may end before callers wait for room
        self._room: deque[Call] = deque()  # callers who wait for room
        self._held_back = False  # by a reserve that waits on the server
        self._transport: Transport | None = None
        self._reader: Any = None
        self._writer: Any = None
        self._timer: Any = None
        self._holder: Any = None  # the timer that ends a hold
        self._holding = False
        self._flush_due = True  # no flush need be scheduled: corked, scheduled already, or a read is going on
        self._wake_due = False
        self._progress = Progress(conn_timeout)
        self._on_end: Call | None = None
        forks.register("pipeline", self, Pipeline._forked)

    # -- commands -----------------------------------------------------------------------------------------------

    def slot(self, command: Command, key: Any = None, duty: Any = None, extra: Any = None) -> Slot:
        return Slot(command, self.session, key, duty, extra)

    def append(self, data: bytes, slot: Slot, before: Slot | None = None) -> None:
        """Send a command, or two that belong together. Never switches, never fails: a slot learns of everything.

        Args:
            data: The bytes of both.
            slot: Where the reply goes.
            before: The slot of the first one, whose bytes stand before the other's.
        """
        slots = self.slots
        self._appended = slot.end = end = self._appended + len(data)
        if self.failure is not None:  # a duty's follow-up, or the race after a switch
            self._fail_slot(slot)
            return
        try:
            if before is not None:
                before.end = end
                slots.append(before)
            slots.append(slot)
            self._out.append(data)
            if end > self._limit or len(slots) >= MAX_SLOTS:
                self.clear = False
            if not self._flush_due:
                if len(slots) == (1 if before is None else 2):  # it was idle
                    self._begin()
                    self._flush()
                else:
                    self._flush_due = True
                    self.hub.loop.run_callback(self._on_turn)
        except BaseException as error:
            self.torn(error)
            if self.failure is not None and slot.error is None:  # it was not in the FIFO yet
                self._fail_slot(slot)
            raise
        if self.failure is not None and slots:  # it was cut in the middle of this, where a signal handler slept
            self._finish(self.sent)

    def wait(self, slot: Call) -> Any:
        """`wait_for`, spelled out for the sake of the hot path; `join` says why the loop is written so."""
        slot.waiter = getcurrent()
        switch = self.hub.switch
        try:
            while True:
                if slot.result is PENDING and slot.error is None:
                    switch()
                    continue
                break
        finally:
            slot.waiter = None
        if slot.error is not None:
            raise slot.take_error()
        return slot.result

    def wait_room(self) -> None:
        """Wait until commands may be appended. Whoever is interrupted here has sent nothing."""
        self.check_may_wait()
        while not self.clear and self.failure is None and not self._held_back:
            call = Call()
            self._room.append(call)
            if self._reader is not None:
                self._reader.ref = True
            try:
                wait_for(self.hub, call)
            except BaseException:
                if call in self._room:
                    self._room.remove(call)
                else:  # the room was offered to us
                    self._offer_room()
                raise

    def check_may_wait(self) -> None:
        """Refuse to be called where nothing can wait, before anything is sent."""
        if getcurrent() is self.hub:
            raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")

    def hold_back(self, held: bool) -> None:
        """Have callers look before they append, since the server waits in a reserve; or no longer."""
        self._held_back = held
        self.clear = not held and self._has_room()

    def complete(self, call: Call) -> None:
        """Wake whoever waits for a call that has been answered by other means than a reply."""
        self.session.done.append(call)
        self._wake_soon()

    def give_up(self, which: Callable[[Slot], bool]) -> None:
        """Tell these slots' callers at once that the connection is being closed; replies are still taken.

        Each may have been acted on: what the kernel has not taken yet still goes out, before what others wait for.
        """
        for slot in self.slots:
            if which(slot):
                slot.error = lost(slot, ConnectionClosedError, "you closed it", self._appended)
                self.complete(slot)

    # -- life ---------------------------------------------------------------------------------------------------

    def attach(self, transport: Transport) -> None:
        """Uncork: what has been appended goes out, and replies are read from here on."""
        if self.failure is not None:
            transport.close()
            return
        loop = self.hub.loop
        self._transport = transport
        self._progress.is_draining = False
        transport.count_anew()
        self._reader = loop.io(transport.fileno(), READ, ref=False)
        self._reader.start(self._on_readable)
        self._flush_due = False
        if self.slots:
            self._begin()
            self._flush_whole()
        elif self._room:
            self._offer_room()

    @property
    def attached(self) -> bool:
        return self._transport is not None and self.failure is None

    @property
    def sent(self) -> int:
        """How much of the stream the kernel has taken."""
        return self._transport.sent if self._transport is not None else 0

    def end(self) -> Call:
        """Begin to take leave: half-close, and read to the end; the call returned is answered there.

        Where the socket can't be half-closed (TLS) it is closed. A job that the server hands over meanwhile goes
        back by itself when the server sees the end.
        """
        call = Call()
        if self._holding:
            self._flush_whole()
        if self._transport is not None and self.failure is None and self._transport.half_close():
            self._on_end = call
            self._held_back = True
            self.clear = False
        else:
            call.result = None
            self.fail(ConnectionClosedError, "connection closed to end a reserve")
        return call

    def fail(
        self, kind: type[DisconnectedError], why: str, cause: BaseException | None = None, sent: int | None = None
    ) -> None:
        """Close the connection, and tell every slot why. Idempotent; never switches.

        Args:
            kind: What is raised in those who wait, and from now on.
            why: Its message.
            cause: What is chained to it, as a copy without its traceback, which would hold this connection.
            sent: How much of the stream counts as sent; `None`: what the kernel has taken.
        """
        if self.failure is not None:
            return
        sent = self.sent if sent is None else sent
        self.failure = (kind, why, None if cause is None else bare(cause))
        try:
            self._finish(sent)
        except BaseException:  # a signal's: again, from where it struck, or somebody would wait for ever
            self._finish(sent)
            raise

    def torn(self, error: BaseException) -> None:
        """End a connection whose work a signal's exception has hit: what came of it nobody knows."""
        if not isinstance(error, GreenletExit):  # that is the end of the hub, which has other ways
            self._wake_due = False  # the read that was to wake all has ended here
            self.fail(ConnectionLostError, f"{type(error).__name__} hit in the middle", sent=self._appended)
            self._wake_soon()  # also those of an end that it has hit

    def forsake(self, why: str = "its thread has ended") -> None:
        """Close the socket, no more: the thread has ended, and with it its loop and all who waited."""
        self.failure = (ConnectionClosedError, why, None)
        self.clear = False
        threads.close_watchers(self.hub, self._watchers())
        if self._transport is not None:
            self._transport.close()
        if self.on_failure is not None:  # its jobs are lost
            self.on_failure()

    def _forked(self) -> None:
        """In a child: the connection is the parent's, who goes on and sends all of it."""
        why = "this connection belongs to the parent process: dial again"
        if forks.is_here(self.hub):
            self.fail(ConnectionClosedError, why, sent=self._appended)
        elif self.failure is None:
            self.forsake(why)

    def error(self, what: str) -> DisconnectedError:
        """Build the error of a command that came too late."""
        assert self.failure is not None
        kind, why, cause = self.failure
        error = kind(f"{what} at {self.uri}: {why}; it was not sent", "no")
        error.__cause__ = cause
        return error

    # -- the loop -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Go from idle to busy: a reply is due from now on, and the process has something to wait for."""
        self._progress.replied_at = monotonic()
        reader = self._reader
        if reader is None:  # as in `append`
            return
        reader.ref = True
        if self._timer is None:
            self._set_timer(self.conn_timeout or UNLIMITED)

    def _on_turn(self) -> None:
        if self.section.owner is None or self.section.is_free:
            self._flush_whole()
        else:  # as all that is called in the hub: it comes again, when the one who is inside the section may be outside
            self.hub.loop.run_callback(self._on_turn)

    @whole
    def _flush_whole(self) -> None:
        """`_flush`, for those who don't look after a torn send themselves."""
        self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        if self._holding:
            self._holding = False
            if self._holder is not None:
                self._holder.stop()
        transport = self._transport
        if transport is None or self.failure is not None or not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        try:
            all_taken = transport.write(data)
        except ConnectionLostError as error:
            self._read_rest(ConnectionLostError, str(error), error)
            return
        self._limit = transport.sent + MAX_BYTES
        if len(data) > LARGE and self.conn_timeout is not None:
            self._progress.large_write(transport.delivered()[0])
            if self._timer is not None:
                self._timer.close()
                self._set_timer(self.conn_timeout)
        if not all_taken and not self._progress.is_blocked:
            self._progress.blocked(transport.sent, monotonic())
            if self._writer is None:
                self._writer = self.hub.loop.io(transport.fileno(), WRITE, ref=False)
            self._writer.start(self._on_writable)

    @whole
    def _on_writable(self) -> None:
        transport = self._transport
        if transport is None or self.failure is not None or not (self.section.owner is None or self.section.is_free):
            return
        try:
            if transport.flush():
                self._progress.is_blocked = False
                self._writer.stop()
        except ConnectionLostError as error:
            self._read_rest(ConnectionLostError, str(error), error)
            return
        # A flush, or TLS when it reads, may have used the room in the socket before this.
        if self._progress.accepted(transport.sent, self.slots[0].end if self.slots else None, monotonic()):
            self._limit = transport.sent + MAX_BYTES
            if self._room:
                self._offer_room()
                self._wake()

    @whole
    def _on_readable(self) -> None:
        assert self._transport is not None
        if self.section.owner is not None and not self.section.is_free:
            return
        try:
            data = self._transport.read()
        except ConnectionLostError as error:
            self.fail(ConnectionLostError, str(error), error)
            return
        if data is None:
            return
        self._flush_due = True  # what is appended from here on goes out in one piece, below
        self._wake_due = True  # and whoever is answered is wakened below
        self._take(data)
        self._wake()
        if self.failure is not None:
            return
        if not self._out:
            self._flush_due = False
        elif len(self._out) >= len(self.slots) // 2 or not self.clear or self._appended - self.sent > LARGE:
            self._flush()
        elif not self._holding:
            self._hold()
        if not self.slots and not self._room and self._on_end is None and self._reader is not None:
            self._reader.ref = False

    def _hold(self) -> None:
        """Keep what the wakened have appended until more replies are there; rule 2 says why."""
        self._holding = True
        if self._holder is None:
            self._holder = self.hub.loop.timer(HOLD, HOLD, ref=False)
        self._holder.again(self._on_turn, update=True)  # `start` would go on with what was left when it was stopped

    def _take(self, data: bytes) -> None:
        """Answer slots with what a read brought."""
        if not data:
            if self._on_end is not None:
                self.fail(ConnectionClosedError, "connection closed to end a reserve")  # it answers the call, too
            else:
                self.fail(ConnectionLostError, "the server closed the connection")
            return
        session = self.session
        self.read_at = now = monotonic()
        broken = session.receive(data)
        if session.done or session.progressed():
            self._progress.replied_at = now
        if broken is not None:
            self.fail(ConnectionLostError, f"the server broke the protocol: {broken}", broken)
        elif self._room or not self.clear:  # also those whom the last offer did not reach
            self._offer_room()

    def _wake(self) -> None:
        """Switch to the greenlets of all calls in `done`. Only ever runs in the hub."""
        session = self.session
        done: list[Call] = []
        try:
            self._wake_due = False
            while session.done:
                done, session.done = session.done, []
                for call in done:
                    waiter = call.waiter
                    if waiter is not None:  # else nobody waits any more, and a bare switch would hit what he does now
                        try:
                            waiter.switch()
                        except BaseException:  # a raw greenlet that dies of it ends here, not the others' replies
                            self.hub.handle_error(waiter, *sys.exc_info())
        except GreenletExit:  # the hub's own end
            raise
        except BaseException:  # a signal's
            session.done[:0] = done
            self._wake_due = False
            self._wake_soon()
            raise

    def _wake_soon(self) -> None:
        if not self._wake_due and self.session.done:
            for _ in range(2):  # a signal may strike the first one before its first line
                self.hub.loop.run_callback(self._wake)
            self._wake_due = True

    def _has_room(self) -> bool:
        self._limit = self.sent + MAX_BYTES  # TLS also sends when it reads
        return self.failure is None and len(self.slots) <= MAX_SLOTS // 2 and self._appended < self._limit

    def _offer_room(self) -> None:
        if self._has_room() and not self._held_back:
            self.clear = True
            for _ in range(min(len(self._room), MAX_SLOTS // 2)):
                self._room[0].result = None
                self.complete(self._room[0])
                self._room.popleft()  # last: a signal that comes between must not lose it

    def _set_timer(self, seconds: float) -> None:
        seconds = self._progress.look_in(seconds)
        # Repeated: Ctrl-C may strike before the first line of `_on_timer`, which else closes it.
        self._timer = self.hub.loop.timer(seconds, seconds, ref=False)
        # `update`: the loop's own idea of now may be old, and a timer would be early by that much.
        self._timer.start(self._on_timer, update=True)

    @whole
    def _on_timer(self) -> None:
        if self.section.owner is not None and not self.section.is_free:
            return
        self._timer.close()
        self._timer = None
        if self._reader is not None and not self._reader.active:
            # gevent stops a watcher whose callback raises; where Ctrl-C struck before its first line, all is well.
            self._reader.start(self._on_readable)
        if self._progress.is_draining and self._transport is not None:
            self._progress.looked(*self._transport.delivered(), monotonic())
        left = self._time_left()
        if left is not None and left <= 0:
            self.catch_up()
            left = self._time_left()
            if left is not None and left <= 0:
                self.fail(CommandTimeoutError, f"no progress for {self.conn_timeout} s; connection closed")
        if left is not None and left > 0 and self._timer is None:
            self._set_timer(left)

    @whole
    def look(self) -> None:
        """In a greenlet, inside the section: take in what has come while the loop had no turn. It may be the end."""
        try:
            while self.attached and (data := self._transport.read()) is not None:  # type: ignore[union-attr]
                self._take(data)
        except ConnectionLostError as error:
            self.fail(ConnectionLostError, str(error), error)
        self._wake_soon()

    def sever(self) -> None:
        """From another thread: have the server see the end. The rest is for this connection's own hub to do."""
        if (transport := self._transport) is not None:
            transport.sever()

    def catch_up(self) -> None:
        """In the hub, which may have been blocked: take what has arrived, and use the room that is in the socket."""
        if self._progress.is_blocked:
            self._on_writable()
        if self.failure is None and self._transport is not None:
            self._on_readable()

    def _time_left(self) -> float | None:
        """Seconds until the connection counts as stuck; `None` if nothing is due."""
        if self.failure is not None or self._transport is None:
            return None
        oldest = self.slots[0] if self.slots else None
        end, patience = (None, 0.0) if oldest is None else (oldest.end, oldest.patience)
        return self._progress.time_left(end, patience, self._transport.sent, monotonic())

    def _read_rest(self, kind: type[DisconnectedError], why: str, cause: BaseException | None) -> None:
        """A send has failed: what the server said before that is read first, then the connection is over."""
        try:
            while self.failure is None and self._transport is not None and (data := self._transport.read()):
                self._take(data)
        except ConnectionLostError:
            pass
        self.fail(kind, why, cause)

    def _finish(self, sent: int) -> None:
        """Let go of everything, and tell all who wait; each step may come twice."""
        self.clear = False
        for watcher in self._watchers():
            watcher.close()
        self._reader = self._writer = self._timer = self._holder = None
        self._out.clear()
        self._flush_due = True  # so that an `append` in whose middle this happens does nothing more
        if self._transport is not None:
            self._transport.close()
        assert self.failure is not None
        kind, why, cause = self.failure

        def make(slot: Slot) -> DisconnectedError:
            error = lost(slot, kind, why, sent)
            error.__cause__ = cause
            return error

        self.session.fail(make)
        while self._room:
            self._room[0].result = None
            self.complete(self._room[0])
            self._room.popleft()
        if self._on_end is not None:
            self._on_end.result = None
            self.complete(self._on_end)
            self._on_end = None
        self._wake_soon()
        if self.on_failure is not None:
            self.on_failure()

    def _watchers(self) -> list[Any]:
        return [each for each in (self._reader, self._writer, self._timer, self._holder) if each is not None]

    def _fail_slot(self, slot: Slot) -> None:
        slot.error = self.error(slot.command.name)
        if slot.duty is not None:
            slot.duty(slot)
        self.complete(slot)
