"""An asyncio event loop for greenlets: they wait for coroutines, and the hub goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from gevent import get_hub, monkey, spawn
from gevent.event import Event

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own; where asyncio waits in gevent's way, in a greenlet.

    It belongs to the hub in which it is made, so each process makes one, after a fork, and keeps it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended: deque[Event] = deque()  # of coroutines that have ended, until the hub has told who waits for them
        self._wake = get_hub().loop.async_()  # its `send` is the one thing of gevent's that a thread may call
        self._wake.start(self._tell)
        # Where selectors are patched, the loop's waits are the hub's. In a thread they would be those of a hub that
        # nobody runs: it ends in LoopExit, or never finds a name.
        is_green = monkey.is_module_patched("selectors")
        self._running = (spawn if is_green else get_hub().threadpool.spawn)(self._loop.run_forever)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, in a copy of the caller's context, and give its result, or raise its error.

        If the wait is interrupted (a time limit, a kill), the coroutine is cancelled.
        """
        ended = Event()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(end)

        def end(task: asyncio.Task[T]) -> None:
            self._ended.append(ended)
            self._wake.send()

        self._loop.call_soon_threadsafe(start)
        try:
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # after `start`: callbacks have an order
            raise
        return tasks[0].result()

    def close(self) -> None:
        """Stop the loop. What still runs there is left as it is."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._running.get()
        self._loop.close()
        self._wake.close()

    def _tell(self) -> None:
        """In the hub: hand over what has ended."""
        while self._ended:
            self._ended.popleft().set()
