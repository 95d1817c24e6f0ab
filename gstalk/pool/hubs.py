"""A Producer's connections in all threads: each hub has its own (`pool.put_queue.PutQueue`), from its first put on.

Nothing is shared between threads but what is known of outages, so that each is told once. The connections of a thread
that has ended are closed by `connection.threads`.

What another thread may do with a `PutQueue` is little: read how many puts are under way, set a flag, have its hub call
something, and sever its connections. The last is for a thread whose loop doesn't turn, since it waits for something
that isn't gevent's: the server sees the end at once, and the descriptor is closed when the loop turns or the thread
ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

from gstalk.config import Config
from gstalk.connection import threads
from gstalk.connection.clock import monotonic
from gstalk.connection.hooks import Hooks
from gstalk.pool.put_queue import PutQueue
from gstalk.uri import Address

__all__ = ["Hubs"]

LOOK = 0.01  # seconds between two looks at the puts of other threads; also longer than a thread waits for its turn


class Hubs:
    """The connections of one Producer. May be used from any thread.

    Attributes:
        is_over: The Producer was stopped.
    """

    def __init__(self, addresses: Sequence[Address], config: Config, hooks: Hooks) -> None:
        self._addresses = addresses
        self._config = config
        self._hooks = hooks
        self.is_over = False
        self._queues: dict[Hub, PutQueue] = {}
        self._outages: set[str] = set()

    def find(self) -> PutQueue | None:
        """Return this hub's connections, if it has any. Makes no hub."""
        hub = threads.get_hub_if_exists()
        queue = None if hub is None else self._queues.get(hub)
        return None if queue is None or queue.is_parents else queue

    def enter(self) -> PutQueue:
        """Return this hub's connections, which are made if it has none."""
        queue = self.find()
        if queue is None:
            for hub, each in list(self._queues.items()):
                if each.is_parents:
                    self._queues.pop(hub, None)  # another thread may do the same
            made = PutQueue(self._addresses, self._config, self._hooks, self._outages)
            queue = self._queues.setdefault(made.hub, made)
            if queue is made:
                threads.register(made, self._thread_ended)
            else:  # a signal handler that puts has come between
                made.pool.cut()
        return queue

    def _thread_ended(self, queue: PutQueue) -> Sequence[gevent.Greenlet[..., Any]]:
        if self._queues.get(queue.hub) is queue:
            self._queues.pop(queue.hub, None)  # a stop in another thread may have come between
        return queue.abandon()

    def end(self, seconds: float | None) -> None:
        """Let puts under way finish, in all threads, and close all connections.

        Args:
            seconds: That they may take; `None`: no limit.
        """
        mine = self.find()
        if mine is not None and mine.section.owner is not None:
            mine.section.wait()
        in_hub = getcurrent() is threads.enter()
        if in_hub and seconds != 0 and any(queue.puts > 0 for queue in self._here()):
            raise BlockingSwitchOutError("stop: puts are under way, and the hub can't wait: spawn a greenlet for it")
        self.is_over = True  # first: connections that another thread makes from here on, it closes itself
        theirs = [queue for queue in self._here() if queue is not mine]
        deadline = None if seconds is None else monotonic() + seconds
        for queue in theirs:
            queue.is_ready, queue.is_ending = False, True
            threads.call(queue.hub, queue.begin_end)
        if mine is not None:
            mine.is_ready = False
            mine.begin_end()
        try:
            if mine is not None:
                mine.wait_idle(seconds)
            if theirs and not in_hub:
                _wait_idle(theirs, deadline)
        finally:
            self._queues.clear()
            for queue in theirs:
                queue.close_from_outside()
            if mine is not None:
                mine.close()

    def drop(self) -> None:
        """Close all connections, since nobody refers to the Producer any more. Never switches."""
        mine = self.find()
        here = [queue for queue in self._here() if not queue.pool.is_stopped]
        self._queues.clear()
        for queue in here:
            if queue is mine and not queue.section.is_interrupted:  # else its own hub may be in the middle of a read
                queue.pool.cut()
            else:
                queue.close_from_outside()
        if here:
            uris = ", ".join(dict.fromkeys(str(address) for address in self._addresses))
            message = f"a Producer of {uris} was not stopped"
            warnings.warn(message, ResourceWarning, stacklevel=2)  # last: it may be an error

    def _here(self) -> list[PutQueue]:
        """All connections of this process."""
        return [queue for queue in list(self._queues.values()) if not queue.is_parents]


def _wait_idle(theirs: list[PutQueue], deadline: float | None) -> None:
    """Wait until no put is under way in other threads."""
    while True:
        # At least once: a thread may have seen that it may put, and not have counted its put yet.
        left = LOOK if deadline is None else min(LOOK, deadline - monotonic())
        if left <= 0:
            return
        gevent.sleep(left)
        if not any(queue.puts > 0 and not queue.is_abandoned for queue in theirs):
            return
