"""One connection to one server, and its state there: commands in flight, the tube in use, the tubes watched, its end.

What it does about jobs stands one floor up, in `connection.connection`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.hub import Hub

from gstalk.config import Config
from gstalk.connection import threads, used_tube
from gstalk.connection.calls import join
from gstalk.connection.connect import dial
from gstalk.connection.critical import critical, refusal, section_of
from gstalk.connection.ending import drop
from gstalk.connection.hooks import Hooks, Outcomes
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.recall import Recall
from gstalk.connection.reserved import ReservedJobs, settles
from gstalk.connection.transport import Transport
from gstalk.errors import ConnectionClosedError, DisconnectedError, InternalError
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.request import Request, Then
from gstalk.protocol.stats import ServerStats
from gstalk.uri import Address

__all__ = ["Channel"]


class Channel:
    """One connection and its state on the server.

    Attributes:
        pipe: The commands in flight; another one after a `recall`.
        reserved: The jobs that this connection has reserved.
        outcomes: What tells of the ends of commands; `None`: nobody listens.
        used: The tube that the last command appended will find in use; `None`: unknown.
        watched: The tubes watched, as the server confirmed them, or may have done without saying so.
        section: The hub's critical section; greenlets change what belongs to a connection inside of it alone.
        on_failure: Called once, when the connection is over; must not switch.
        on_closing: Called when it begins to close and what settles jobs is still waited for; must not switch.
    """

    __slots__ = (
        "__weakref__ _closed _end_wait _finalizer _holder _recall address config hub "
        "on_closing on_failure outcomes pipe reserved section server uri used watched"
    ).split()

    def __init__(self, address: Address, config: Config, tubes: tuple[str, ...] = ()) -> None:
        """Dial, and wait until the server has answered.

        Args:
            tubes: What to watch, instead of `default`.

        Raises:
            ConnectError: It did not.
        """
        self.address = address
        self.uri = str(address)
        self.config = config
        self.hub: Hub = threads.enter()
        self.section = section_of(self.hub)
        self.outcomes = None if config.event_func is None else Outcomes(self.uri, self.hub, Hooks(config))
        self.reserved = ReservedJobs()
        self.used: str | None = "default"
        self.watched = list(tubes) or ["default"]
        self.on_failure: Callable[[], None] | None = None
        self.on_closing: Callable[[], None] | None = None
        self._closed = False
        self._end_wait: Callable[[], None] | None = None
        self._recall: Recall | None = None  # the last one
        self.pipe = Pipeline(self.uri, self.hub, config.conn_timeout)
        self.pipe.check_may_wait()
        transport, self.server = self._dial()
        self._holder = [self.pipe]
        self._finalizer = weakref.finalize(self, drop, self._holder)
        self._finalizer.atexit = False
        self._adopt(self.pipe)
        self.pipe.attach(transport)

    # -- commands ----------------------------------------------------------------------------------------------

    def check(self, what: str) -> None:
        """Refuse a command that can't be sent from here, or any more, before its arguments are looked at."""
        if get_hub() is not self.hub and self.pipe.failure is None:
            raise threads.wrong_hub(f"{what} at {self.uri}")
        if self._closed or self.pipe.failure is not None:
            raise self.gone(what)
        if getcurrent() is self.hub:
            self.pipe.check_may_wait()
        if self.section.owner is not None:
            self.section.wait()
        if self._recall is not None and self._recall.greenlet is getcurrent():
            raise refusal()  # a signal handler has struck there, and would wait for what this greenlet has to do

    def gone(self, what: str) -> DisconnectedError:
        """Build the error of a command that comes after the connection's end."""
        if self._closed:
            return ConnectionClosedError(f"{what} at {self.uri}: the connection is closed; it was not sent")
        return self.pipe.error(what)

    def clear(self, what: str) -> None:
        """Return when a command may be appended; may wait for room, and ends a wait on the server."""
        while not self.pipe.clear:
            self.wait_room()
            self.check(what)

    @critical
    def wait_room(self) -> None:
        """Wait until a command may be appended, or the connection is over. Only what interrupts is raised here."""
        with self.section:
            if self._end_wait is not None:
                self._end_wait()
        if not self.pipe.clear:
            self.pipe.wait_room()

    def call(
        self, command: Command, data: bytes, key: Any = None, then: Then | None = None, subject: Any = None
    ) -> Any:
        """Send a command, wait for its reply, and return its result or raise its error."""
        request = Request(command, self.pipe.uri, key, then, subject)
        return self.send(data, request).wait(request)

    @critical
    def send(self, data: bytes, request: Request, tube: str | None = None, before: Sequence[Request] = ()) -> Pipeline:
        """Append a command as soon as there is room for it; whoever is interrupted until then has sent nothing.

        Args:
            data: Its bytes.
            request: Where the reply goes.
            tube: The one that it acts on, if it acts on the tube in use.
            before: The requests of other commands, as for `Pipeline.append`.
        """
        self.clear(request.command.name)
        with self.section:
            if tube is None or tube == self.used:
                self.pipe.append(data, request, before)
            else:
                self.append_using(tube, data, request)
            return self.pipe

    @critical
    def append(self, data: bytes, request: Request) -> None:
        """Append a command of ours, in a greenlet, whether there is room or not."""
        with self.section:
            self.pipe.append(data, request)

    def append_using(self, tube: str, data: bytes = b"", request: Request | None = None) -> Request:
        """Append a `use`, and with it a command that acts on the tube in use; returns the request of the `use`."""
        line = commands.by_tube(commands.USE, tube)
        use = self.pipe.request(commands.USE, tube.encode("ascii"), self._use_answered)
        self.used = None  # first: where a signal strikes, the next command says `use` again
        if request is None:
            self.pipe.append(line, use)
        else:
            use.end = len(line)
            self.pipe.append(line + data, request, (use,))
        self.used = tube
        return use

    def _use_answered(self, use: Request) -> None:
        if used_tube.has_changed(self.pipe, use):
            self.used = None  # the next command says `use` again

    @critical
    def use(self, tube: str) -> None:
        self.clear("use")
        with self.section:
            pipe, request = self.pipe, self.append_using(tube)
        pipe.wait(request)

    def watch(self, tube: str) -> int:
        return int(self.call(commands.WATCH, commands.by_tube(commands.WATCH, tube), None, self.watching, tube))

    def ignore(self, tube: str) -> int:
        return int(self.call(commands.IGNORE, commands.by_tube(commands.IGNORE, tube), None, self.watching, tube))

    def watching(self, request: Request) -> None:
        """A watch or an ignore was answered: remember what is watched, or may be, for jobs and for the next dial."""
        tube, error = request.subject, request.error
        may_be_watched = error is None or isinstance(error, InternalError)  # with that one the server may have acted
        if request.command is commands.IGNORE and error is None and tube in self.watched:
            self.watched.remove(tube)
        elif request.command is commands.WATCH and may_be_watched and tube not in self.watched:
            self.watched.append(tube)

    # -- life --------------------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Call a waiting reserve back. Commands gather on a new pipe meanwhile; never switches."""
        if self.pipe.failure is not None:  # as the wait was sent: a connection that has ended never comes back
            return
        old, new = self.pipe, Pipeline(self.uri, self.hub, self.config.conn_timeout)
        try:
            self._end_wait = None
            new.clear = False  # until there is a transport: whoever comes looks first where he is (`check`)
            self.pipe = self._holder[0] = new
            self._adopt(new)
            old.on_failure = None
            self._recall = Recall(old, new, partial(self._dial, self.used or "default"), self.server.id)
        except BaseException as error:  # a signal's
            self._adopt(self.pipe)
            self.pipe.struck(error)  # first: whoever hears of the end asks this one why
            old.struck(error)
            raise

    def _dial(self, used: str = "default") -> tuple[Transport, ServerStats]:
        return dial(self.hub, self.address, self.config.tls_context, self.config.conn_timeout, used, self.watched)

    def _adopt(self, pipe: Pipeline) -> None:
        connection = weakref.ref(self)

        def failed() -> None:
            if (mine := connection()) is not None:
                mine._failed()

        pipe.on_failure = failed

    def _failed(self) -> None:
        self.reserved.lose_all()
        self._finalizer.detach()
        if self.on_failure is not None:
            self.on_failure()
        # Last: whoever was told refers to this connection, and it to him.
        self.on_failure = self.on_closing = self.reserved.on_settled = self._end_wait = None

    def close(self) -> None:
        """Let what settles jobs finish, at most `conn_timeout`, and close; idempotent."""
        if get_hub() is not self.hub:
            raise threads.wrong_hub(f"close of {self.uri}")
        if self._closed:
            return
        if self.section.owner is not None and getcurrent() is not self.hub:
            self.section.wait()
        if self.section.is_interrupted:
            for _ in range(2):  # a signal may strike the first one before its first line
                self.hub.loop.run_callback(self.cut)
            self._closed = True
            return
        try:
            self._closed = True  # not before: where a signal strikes, this may be called again
            if self._may_settle() and getcurrent() is not self.hub:
                with self._patience():
                    self._drain()
        finally:
            self.cut()

    def leave_wait(self) -> None:
        """Begin to `leave` while a reserve waits on the server; never switches."""
        self._closed = True  # a command would find no way past the wait
        self.pipe.end()

    def leave(self) -> None:
        """Close so that the server has let go when this returns: settle, half-close, and read to the end."""
        self._closed = True
        try:
            with self._patience():
                if self._recall is not None and not self._recall.greenlet.ready():  # the server still has that wait
                    if not self._may_settle():
                        self.pipe.fail(ConnectionClosedError, "you closed it")
                    self._recall.greenlet.join()
                self._drain()
                self.pipe.wait(self.pipe.end())
        finally:
            self.cut()

    def cut(self) -> None:
        """Close at once; never switches."""
        self._closed = True
        if self._recall is not None:
            self._recall.cut()
        self.pipe.fail(ConnectionClosedError, "you closed it")

    def _may_settle(self) -> bool:
        return any(settles(request) for request in self.pipe.requests)

    def _drain(self) -> None:
        """Wait for deletes, releases and buries; replies come in order, so one more command tells when they did."""
        pipe = self.pipe
        pipe.give_up(lambda request: not settles(request))
        if self.on_closing is not None:
            self.on_closing()
        while pipe.failure is None and self._may_settle():
            fence = pipe.request(commands.LIST_TUBE_USED)
            self.append(commands.plain(commands.LIST_TUBE_USED), fence)
            join(self.hub, fence)

    @property
    def is_connected(self) -> bool:
        return not self._closed and self.pipe.failure is None

    def _patience(self) -> gevent.Timeout:
        """A time limit of `conn_timeout` that ends its block quietly."""
        return gevent.Timeout(self.config.conn_timeout, False)  # type: ignore[arg-type]  # the stubs lack False
