"""Connections kept alive: a keeper greenlet for each dials, hands over, waits for the end, and dials again.

A keeper keeps nothing else alive: while it pauses or waits for the end of its connection, the process may end, unless
somebody waits for a connection (`wanted`). After a fork the child's keepers end at their next wake.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

from gstalk.config import Config
from gstalk.connection import forks
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.hooks import Hooks
from gstalk.connection.interrupts import ENDS
from gstalk.errors import CommandTimeoutError, ConnectError, DisconnectedError, GstalkError
from gstalk.pool.chance import chance
from gstalk.pool.schedule import Backoff, Health
from gstalk.traces import bare
from gstalk.uri import Address

__all__ = ["Pool", "Server"]

REPLACEMENT = 0.1  # seconds until a keeper that a signal has ended is replaced


class Server:
    """One server, however many connections it has.

    Attributes:
        error: What failed last there.
        health: Whether it may be used.
        connections: Those that it has now.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.uri = str(address)
        self.error: BaseException = ConnectError(f"no connection to {self.uri} yet")
        self.health = Health()
        self.connections: set[Connection] = set()

    @property
    def is_usable(self) -> bool:
        return bool(self.connections) and self.health.is_usable

    @property
    def trouble(self) -> BaseException:
        """Why it isn't usable."""
        return self.health.refusal if self.connections and self.health.refusal is not None else self.error


class Pool:
    """`multiply` connections to each server.

    Args:
        addresses: The servers.
        config: For all connections.
        tubes: What they watch, instead of `default`.
        hooks: Told of outages, once of each.
        up: Called with a server and a connection that has just connected, from its keeper; may not switch.
        down: Called with the same when it is over, from its keeper or from the hub; may not switch.
        outages: Where the servers stand that are known to be down; several pools may share it.

    Attributes:
        tubes: What connections that are dialed from now on watch; the owner may change it.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        config: Config,
        tubes: tuple[str, ...],
        hooks: Hooks,
        up: Callable[[Server, Connection], None],
        down: Callable[[Server, Connection], None],
        outages: set[str] | None = None,
    ) -> None:
        self._config = config
        self.tubes = tubes
        self._hooks = hooks
        # Weak: the pool's owner holds the pool, and must go when nobody refers to him.
        self._up = weakref.WeakMethod(up)
        self._down = weakref.WeakMethod(down)
        self._outages = set() if outages is None else outages
        self._wanting: set[object] = set()
        self._timers: set[Any] = set()
        self._changed = Event()
        self._troubles: dict[str, BaseException] | None = None  # once asked for, until the next change
        self.hub = get_hub()
        self.connections: list[Connection] = []
        self.servers = [Server(address) for address in dict.fromkeys(addresses)]
        self.is_stopped = False
        self.keepers: list[gevent.Greenlet[..., Any]] = []
        times = Counter(addresses)
        for number in range(config.multiply * max(times.values())):
            for server in self.servers:  # in turn: puts of one moment follow each other on a few connections
                if number < config.multiply * times[server.address]:
                    self.keepers.append(self._new_keeper(server))
                    self.keepers[-1].start()
        forks.register("pool", self, Pool._forked)

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is usable."""
        return any(server.is_usable for server in self.servers)

    @property
    def needs_me(self) -> bool:
        """There is no connection, and the greenlet that asks is one that makes them: it would wait in vain."""
        return not self.connections and getcurrent() in self.keepers

    def check_may_wait(self) -> None:
        """Refuse to wait for a connection in a hook, or a signal handler, that runs in the greenlet which makes it."""
        if self.needs_me:
            raise BlockingSwitchOutError("gstalk can't wait here for its own connection: spawn a greenlet for it")

    def wait_change(self, timeout: float | None) -> bool:
        """Wait until `is_connected` may be another; `False` if that took longer than so many seconds."""
        self.check_may_wait()
        waiting = object()
        self.want(waiting, True)
        try:
            self._changed.clear()
            return self._changed.wait(timeout)
        finally:
            self.want(waiting, False)

    def changed(self) -> None:
        """Have those who wait for a change look again: a server is, or isn't, usable any more; or the end has come."""
        self._troubles = None
        self._changed.set()

    def troubles(self) -> dict[str, BaseException]:
        """Why the servers that are not usable are not; empty if all of them are."""
        if self._troubles is None:
            self._troubles = {server.uri: server.trouble for server in self.servers if not server.is_usable}
        return self._troubles

    def want(self, who: object, wants: bool) -> None:
        """Somebody waits for a connection, or no longer: pauses keep the process alive meanwhile. May be said twice."""
        was_wanted = bool(self._wanting)
        if wants:
            self._wanting.add(who)
        else:
            self._wanting.discard(who)
        if was_wanted != bool(self._wanting):  # the first one or the last: the others find it done
            for timer in self._timers:
                timer.ref = not was_wanted

    def stop_dialing(self) -> None:
        """No new connections from here on; never switches."""
        self.is_stopped = True
        self.changed()
        for keeper in list(self.keepers):
            keeper.kill(block=False)

    def cut(self) -> None:
        """Close all connections at once, and make no new ones; never switches."""
        self.stop_dialing()
        for connection in list(self.connections):
            connection.cut()

    def sever(self) -> None:
        """From another thread: have the servers see the end of all connections, and make no new ones."""
        self.is_stopped = True
        for connection in list(self.connections):
            connection.pipe.sever()

    def abandon(self) -> list[gevent.Greenlet[..., Any]]:
        """The thread has ended: close all sockets, and no more; returns the greenlets that nobody wakes again."""
        self.is_stopped = True
        for connection in self.connections:
            connection.on_failure = None  # nobody is there to be told
            connection.pipe.abandon()
        return list(self.keepers)

    def _forked(self) -> None:
        """In a child: no new connections; the keepers' copies end at their next wake."""
        self.is_stopped = True

    def _new_keeper(self, server: Server) -> gevent.Greenlet[..., Any]:
        """Make a keeper, which has to be started; another one takes its place if a signal ends it."""

        def ended(_: object) -> None:
            if keeper in self.keepers and self.is_stopped:
                self.keepers.remove(keeper)
            elif keeper in self.keepers:
                self.keepers[self.keepers.index(keeper)] = self._new_keeper(server)
            for each in self.keepers:
                each.start_later(REPLACEMENT)  # this does nothing to those that were started

        keeper = gevent.Greenlet(self._keep, server)
        keeper.name = "gstalk-keeper"
        for _ in range(2):  # a signal may strike `ended`: then the second call does what the first has left
            keeper.rawlink(ended)
        return keeper

    def _keep(self, server: Server) -> None:
        backoff = Backoff(self._config.reconnect_timeout)
        connects = 0
        while True:
            if forks.under_way:
                forks.look()
            if self.is_stopped:
                return
            began = monotonic()
            try:
                connection = Connection(server.address, self._config, self.tubes)
            except GstalkError as error:
                if self.is_stopped:
                    return
                self._failed(server, error)
            else:
                if self.is_stopped:  # a kill is on its way here, and nobody else knows of this connection
                    connection.cut()  # it may be that the thread has ended, where nobody may ask for a hub any more
                    return
                backoff.reset()  # commands were answered, which is more than a connect
                connects += 1
                self._serve(server, connection, connects, monotonic() - began)
            if self.is_stopped:
                return
            self._pause(backoff.pause(chance()))

    def _serve(self, server: Server, connection: Connection, connects: int, took: float) -> None:
        over = Event()

        def failed() -> None:
            if connection in self.connections:  # else this is the second time: a signal has struck in the first
                server.connections.discard(connection)
                server.error = _loss(server, connection)
                if isinstance(server.error, CommandTimeoutError):
                    server.health.stall()
                self.connections.remove(connection)
                self.changed()
            if (down := self._down()) is not None:
                down(server, connection)
            over.set()

        try:
            connection.on_failure = failed
            self.connections.append(connection)
            server.connections.add(connection)
            server.health.answer()
            self.changed()
            if (up := self._up()) is not None:
                up(server, connection)
            del up  # it would be held for as long as this connection lives
            if server.uri in self._outages:
                self._outages.discard(server.uri)
                self._hooks.info(f"connected to {server.uri} again", uri=server.uri, outcome="connected")
            self._hooks.event("connect", uri=server.uri, attempt=connects, duration=took)
            while not over.is_set():
                try:
                    over.wait()
                except ENDS:
                    raise
                except BaseException as error:
                    message = "a hook left this behind; it hit a greenlet that keeps a connection"
                    self._hooks.error(error, message, uri=server.uri)
        except BaseException:
            if not self.is_stopped:  # a signal's, or a kill: the next keeper dials anew
                connection.cut()
            raise
        if not self.is_stopped:
            # A cut alone is no outage: proxies cut idle connections all day.
            loss = _loss(server, connection)
            self._hooks.event("disconnect", uri=server.uri, exception=loss)
            self._hooks.info(f"{loss}; connecting again", uri=server.uri, outcome="disconnected")

    def _failed(self, server: Server, error: BaseException) -> None:
        server.error = bare(error)
        self.changed()
        if server.uri not in self._outages:
            self._outages.add(server.uri)
            message = f"no connection to {server.uri}; trying again until there is one"
            self._hooks.error(error, message, uri=server.uri, outcome="disconnected")

    def _pause(self, seconds: float) -> None:
        timer = self.hub.loop.timer(seconds, ref=bool(self._wanting))
        self._timers.add(timer)
        try:
            self.hub.wait(timer)
        finally:
            self._timers.discard(timer)
            timer.close()


def _loss(server: Server, connection: Connection) -> DisconnectedError:
    assert connection.pipe.failure is not None
    kind, why, _ = connection.pipe.failure
    return kind(f"lost connection to {server.uri}: {why}")
