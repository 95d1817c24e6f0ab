"""One connection's traffic: many greenlets' commands out, their replies back in.

The rules, which everything above stands on:

1. One place reads: an `io` watcher's callback, in the hub. It takes all complete replies of a read, lets `Stream`
   match them, does what each has in `then`, and switches to the greenlets that wait, one after the other.
2. Nobody's send can be interrupted: `append` puts the bytes into a buffer and the request into the FIFO, and nothing
   switches in between. The buffer goes out once per turn of the event loop, so that all greenlets which are ready in
   that turn share one `send`; on an idle connection it goes out at once, so that a lone greenlet pays no latency.
   While replies stream in and the server has more to answer than has gathered, the buffer waits for the next ones, a
   millisecond at most: the server loses nothing by it, and a send for each half of what is in flight instead of one
   for every other command made puts from 64 greenlets a tenth faster.
   What a full socket doesn't take goes out when it is writable again. There is no writer greenlet.
3. A caller's `Timeout`, kill or Ctrl-C therefore only ever hits its wait. The request stays, its reply is read and
   dropped, its `then` is called. Nobody else notices.
4. What runs in the hub never waits, never calls a user's hook, and lets no exception out.
5. After a switch anything may have happened: the connection closed, failed, forked. Look again.
6. A signal is no switch: Ctrl-C may hit any line. Where it would leave a command or a reply half done, the connection
   ends (`struck`); nobody is left waiting.

States: **corked** (no transport yet: commands gather), **open**, **failed** (`failure` says why; all requests were
told). A pipeline never comes back from failed. `clear` is the one flag that the hot path looks at: commands may be
appended.

A connection that makes no progress (`protocol.progress`) for `conn_timeout` is closed. One timer looks at that when
the time could be over, instead of being set anew for each command; and it reads what the kernel already holds before it
calls anything late.

Nothing here refers to the Conn, but through what commands in flight have in `then`: so a Conn that nobody holds is
collected, its finalizer calls `fail`, and the socket closes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from gevent.hub import Hub

from gstalk.connection.calls import check_may_wait, wait_for
from gstalk.connection.clock import monotonic
from gstalk.connection.ending import Ending
from gstalk.connection.loop import fail_stop
from gstalk.connection.transport import READ, WRITE, Transport
from gstalk.errors import (
    CommandTimeoutError,
    ConnectionClosedError,
    ConnectionLostError,
)
from gstalk.protocol.commands import Command
from gstalk.protocol.progress import UNLIMITED, Progress
from gstalk.protocol.request import Outcome, Request, Then

__all__ = ["Pipeline"]

MAX_REQUESTS = 1024  # commands in flight: memory stays bounded, and more would not be faster
MAX_BYTES = 1 << 20  # bytes waiting to be sent
LARGE = 65536  # bytes of a write that may take longer on its way than a reply may
HOLD = 0.001  # seconds for which commands may be kept to share a send


class Pipeline(Ending):
    """The commands in flight on one connection.

    Args:
        uri: For messages.
        hub: The hub that this connection belongs to.
        conn_timeout: Seconds without progress after which the connection is closed; `None`: no limit.
    """

    __slots__ = (
        "__weakref__ _flush_due _held_back _holder _holding _limit _on_end _out _progress _reader _room _timer _writer "
        "conn_timeout read_at"
    ).split()

    def __init__(self, uri: str, hub: Hub, conn_timeout: float | None) -> None:
        super().__init__(uri, hub)
        self.conn_timeout = conn_timeout
        self.read_at = 0.0
        self._out: list[bytes] = []
        self._limit = MAX_BYTES  # where the stream may end before callers wait for room
        self._room: deque[Outcome] = deque()  # callers who wait for room
        self._held_back = False  # by a reserve that waits on the server
        self._reader: Any = None
        self._writer: Any = None
        self._timer: Any = None
        self._holder: Any = None  # the timer that ends a hold
        self._holding = False
        self._flush_due = True  # no flush need be scheduled: corked, scheduled already, or a read is going on
        self._progress = Progress(conn_timeout)
        self._on_end: Outcome | None = None

    # -- commands -----------------------------------------------------------------------------------------------

    def request(self, command: Command, key: Any = None, then: Then | None = None, subject: Any = None) -> Request:
        return Request(command, self.uri, key, then, subject)

    def append(self, data: bytes, request: Request, before: Sequence[Request] = ()) -> None:
        """Send a command, or some that belong together. Never switches, never fails: a request learns of everything.

        Args:
            data: The bytes of all.
            request: Where the last one's reply goes.
            before: The requests of those whose bytes stand before it; the `end` of each is where it ends in `data`.
        """
        requests = self.requests
        self._appended = request.end = end = self._appended + len(data)
        if self.failure is not None:  # a then's follow-up, or the race after a switch
            self.fail_late(*before, request)
            return
        try:
            if before:
                for each in before:
                    each.end += end - len(data)
                requests.extend(before)
                self._out += [b""] * len(before)  # a piece for each command: `_on_readable` counts them
            requests.append(request)
            self._out.append(data)
            if end > self._limit or len(requests) >= MAX_REQUESTS:
                self.clear = False
            if not self._flush_due:
                if len(requests) == 1 + len(before):  # it was idle
                    self._begin()
                    self._flush()
                else:
                    self._flush_due = True
                    self.soon(self._flush)
        except BaseException as error:
            self.struck(error)
            if self.failure is not None:
                self.fail_late(*(each for each in (*before, request) if each.error is None))  # not in the FIFO yet
            raise
        if self.failure is not None and requests:  # it was cut in the middle of this, where a signal handler slept
            self._finish(self.sent)

    def wait_room(self) -> None:
        """Wait until commands may be appended. Whoever is interrupted here has sent nothing."""
        self.check_may_wait()
        while not self.clear and self.failure is None and not self._held_back:
            call = Outcome()
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
        check_may_wait(self.hub)

    def hold_back(self, held: bool) -> None:
        """Have callers look before they append, since the server waits in a reserve; or no longer."""
        self._held_back = held
        self.clear = not held and self._has_room()

    # -- life ---------------------------------------------------------------------------------------------------

    def attach(self, transport: Transport) -> None:
        """Uncork: what has been appended goes out, and replies are read from here on."""
        if self.failure is not None:
            transport.close()
            return
        self._transport = transport
        transport.count_anew()
        # Kept before it is started: libev ends the process for a watcher whose descriptor was closed without it.
        self._reader = self.hub.loop.io(transport.fileno(), READ, ref=False)
        self._reader.start(self.run, self._on_readable)
        self._flush_due = False
        self.clear = not self._held_back and self._has_room()
        if self.requests:
            self._begin()
            self._flush_guarded()
        if self._room:
            self._offer_room()

    @property
    def attached(self) -> bool:
        return self._transport is not None and self.failure is None

    def end(self) -> Outcome:
        """Begin to take leave: half-close, and read to the end; the call returned is answered there.

        Where the socket can't be half-closed (TLS) it is closed. A job that the server hands over meanwhile goes
        back by itself when the server sees the end.
        """
        call = Outcome()
        if self._holding:
            self._flush_guarded()
        if self._transport is not None and self.failure is None and self._transport.half_close():
            self._on_end = call
            self._held_back = True
            self.clear = False
        else:
            call.succeed()
            self.fail(ConnectionClosedError, "connection closed to end a reserve")
        return call

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

    @fail_stop
    def _flush_guarded(self) -> None:
        """`_flush`, for those in a greenlet who don't look after an exception that strikes it."""
        self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        if self._holding:
            self._holding = False
            if self._holder is not None:
                self._holder.stop()
        transport, out = self._transport, self._out
        if transport is None or self.failure is not None or not out:
            return
        data = b"".join(out)  # of one it is that one, not a copy
        out.clear()
        try:
            all_taken = transport.write(data)
        except ConnectionLostError as error:
            self._read_rest(error)
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
                self._writer = self.hub.loop.io(transport.fileno(), WRITE, ref=False)  # kept first, as the reader
            self._writer.start(self.run, self._on_writable)

    def _on_writable(self) -> None:
        transport = self._transport
        if transport is None or self.failure is not None:
            return
        try:
            if transport.flush():
                self._progress.is_blocked = False
                self._writer.stop()
        except ConnectionLostError as error:
            self._read_rest(error)
            return
        # A flush, or TLS when it reads, may have used the room in the socket before this.
        if self._progress.accepted(transport.sent, self.requests[0].end if self.requests else None, monotonic()):
            self._limit = transport.sent + MAX_BYTES
            if self._room:
                self._offer_room()
                self._wake()

    def _on_readable(self) -> None:
        assert self._transport is not None
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
        woken = self.stream.done
        self._wake()
        if self.failure is not None:
            return
        if woken:  # one of them may have held the hub: only now can more be read, or sent
            self._progress.replied_at = monotonic()
        if not self._out:
            self._flush_due = False
        elif len(self._out) >= len(self.requests) // 2 or not self.clear or self._appended - self.sent > LARGE:
            self._flush()
        elif not self._holding:
            self._hold()
        if not self.requests and not self._room and self._on_end is None and self._reader is not None:
            self._reader.ref = False

    def _hold(self) -> None:
        """Keep what the wakened have appended until more replies are there; rule 2 says why."""
        self._holding = True
        if self._holder is None:
            self._holder = self.hub.loop.timer(HOLD, HOLD, ref=False)
        # Not `start`, which would go on with what was left when it was stopped.
        self._holder.again(self.run, self._flush, update=True)

    def _take(self, data: bytes) -> None:
        """Answer requests with what a read brought."""
        if not data:
            if self._on_end is not None:
                self.fail(ConnectionClosedError, "connection closed to end a reserve")  # it answers the call, too
            else:
                self.fail(ConnectionLostError, "the server closed the connection")
            return
        stream = self.stream
        self.read_at = now = monotonic()
        broken = stream.receive(data)
        if stream.done or stream.progressed():
            self._progress.replied_at = now
        if stream.due:
            stream.act()
            while stream.is_held and broken is None:
                broken = stream.receive(b"")
                stream.act()
        if broken is not None:
            self.fail(ConnectionLostError, f"the server broke the protocol: {broken}", broken)
        elif self._room or not self.clear:  # also those whom the last offer did not reach
            self._offer_room()

    def _has_room(self) -> bool:
        transport = self._transport
        self._limit = MAX_BYTES + (0 if transport is None else transport.sent)  # TLS also sends when it reads
        return self.failure is None and len(self.requests) <= MAX_REQUESTS // 2 and self._appended < self._limit

    def _offer_room(self) -> None:
        if self._has_room() and not self._held_back:
            self.clear = True
            for _ in range(min(len(self._room), MAX_REQUESTS // 2)):
                self._room[0].succeed()
                self.complete(self._room[0])
                self._room.popleft()  # last: a signal that comes between must not lose it

    def _set_timer(self, seconds: float) -> None:
        self._timer = self.once(self._progress.look_in(seconds), self._on_timer, ref=False)

    def _on_timer(self) -> None:
        if self._timer is not None:  # else the connection has ended in the turn in which it came
            self._timer.close()
        self._timer = None
        if self._reader is not None and not self._reader.active:
            # gevent stops a watcher whose callback raises; where Ctrl-C struck before its first line, all is well.
            self._reader.start(self.run, self._on_readable)
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

    @fail_stop
    def look(self) -> None:
        """Inside the section, or in the hub: take in what has come while the loop had no turn. It may be the end."""
        try:
            while self.attached and (data := self._transport.read()) is not None:  # type: ignore[union-attr]
                self._take(data)
        except ConnectionLostError as error:
            self.fail(ConnectionLostError, str(error), error)
        self._wake_soon()
        # As behind a read in the hub. Where that has woken this greenlet, `append` leaves it to that read.
        if self.attached and not (self._flush_due or self.requests or self._room or self._on_end):
            self._reader.ref = False

    @fail_stop
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
        oldest = self.requests[0] if self.requests else None
        end, patience = (None, 0.0) if oldest is None else (oldest.end, oldest.patience)
        return self._progress.time_left(end, patience, self._transport.sent, monotonic())

    def _read_rest(self, error: ConnectionLostError) -> None:
        """A send has failed: what the server said before that is read first, then the connection is over."""
        try:
            while self.failure is None and self._transport is not None and (data := self._transport.read()):
                self._take(data)
        except ConnectionLostError:
            pass
        self.fail(ConnectionLostError, str(error), error)

    def watchers(self) -> list[Any]:
        return [each for each in (self._reader, self._writer, self._timer, self._holder) if each is not None]

    def let_go(self) -> None:
        for watcher in self.watchers():
            watcher.close()
        self._reader = self._writer = self._timer = self._holder = None
        self._out.clear()
        self._flush_due = True  # so that an `append` in whose middle this happens does nothing more
        if self._transport is not None:
            self._transport.close()
        while self._room:
            self._room[0].succeed()
            self.complete(self._room[0])
            self._room.popleft()
        if self._on_end is not None:
            self._on_end.succeed()
            self.complete(self._on_end)
            self._on_end = None
