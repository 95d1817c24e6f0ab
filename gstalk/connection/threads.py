"""Threads: each has a hub of its own, and one that has ended leaves nothing behind.

A hub ends with its thread, but gevent doesn't notice that: the loop's descriptors stay open, and greenlets that waited
there stay in memory with all that they hold. A program that starts a thread for each request would not live long. So:

- Whoever needs a hub for somebody else's thread asks `enter` for it, and not gevent.
- What has sockets there has itself `register`ed, and is told when the thread has ended.
- Then the hub is ended, if it is one that `enter` has made. Another one may be used by somebody else, who has to call
  its `destroy`, as gevent says; only the sockets are closed then.

**How the end is noticed.** Python throws away what a thread has in `threading.local` when its function has returned,
in the thread itself. gevent's own record of the hub goes in the same way, perhaps before ours. From then on nothing
here may ask for this thread's hub: gevent would make another one, and Python would not throw it away a second time.
That is why the steps of `Hub.destroy` are done here one by one.

In a child of `fork` the parent's other threads are ended by the one that forked; at the exit of the interpreter
nobody is told, since the process ends anyway.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gevent import Greenlet, GreenletExit, get_hub
from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import HubDestroyed, LoopExit
from gevent.hub import Hub
from gevent.monkey import get_original

from gstalk.errors import WrongHubError

__all__ = ["call", "close_watchers", "enter", "get_hub_if_exists", "register", "wrong_hub"]

T = TypeVar("T")
LetGo = Callable[[T], "Iterable[Greenlet[..., Any]]"]


class _Thread:
    """Lives as long as a thread does.

    Attributes:
        hubs: Those that were made here.
        living: What is told of the end.
    """

    __slots__ = ("__weakref__", "hubs", "living")

    def __init__(self) -> None:
        self.hubs: list[Hub] = []
        self.living: weakref.WeakKeyDictionary[Any, LetGo[Any]] = weakref.WeakKeyDictionary()
        weakref.finalize(self, _ended, self.hubs, self.living).atexit = False


_native_ident = get_original("_thread", "get_ident")
_threads = get_original("_thread", "_local")()  # where the program is patched, that of greenlets is another one


def _this() -> _Thread:
    try:
        this: _Thread = _threads.this
    except AttributeError:
        this = _threads.this = _Thread()
    return this


def enter() -> Hub:
    """Return the hub of this thread, which ends with it if it is made here."""
    hub = get_hub_if_exists()
    if hub is None:
        this = _this()
        hub = get_hub()
        this.hubs.append(hub)
    return hub


def register(each: T, let_go: LetGo[T]) -> None:
    """Have something told when this thread has ended, for as long as somebody refers to it.

    Args:
        let_go: Called with it; returns the greenlets that are to end, too. Must not switch, nor ask for a hub. The
            hub's thread is not always the one that calls: see `forks.is_here`.
    """
    _this().living[each] = let_go


def call(hub: Hub, function: Callable[[], object]) -> None:
    """Have a hub's loop call a function, from any thread; if that hub is gone, nothing happens."""
    loop = hub.loop
    if loop is not None:
        try:
            loop.run_callback_threadsafe(function)
        except ValueError:  # its thread has ended this very moment
            pass


def wrong_hub(what: str) -> WrongHubError:
    """Build the error of a call that is made in another thread than the one whose connection it is about."""
    way_out = "use it and its jobs there, or dial one in each thread; a Producer puts from any thread"
    return WrongHubError(f"{what}: this connection belongs to another thread's hub: {way_out}")


def close_watchers(hub: Hub, watchers: Iterable[Any]) -> None:
    """Close watchers of a hub whose thread has ended: those that are active stay in memory with what they call.

    A child of `fork` leaves those of another thread alone.
    """
    for watcher in watchers:
        if hub.loop is None:  # and gevent can't close them any more
            watcher.callback = watcher.args = None
        elif hub.thread_ident == _native_ident():
            watcher.close()


def _ended(hubs: list[Hub], living: weakref.WeakKeyDictionary[Any, LetGo[Any]]) -> None:
    greenlets = [greenlet for each, let_go in list(living.items()) for greenlet in let_go(each)]
    for hub in hubs:
        if hub.thread_ident == _native_ident():
            _end_greenlets(hub, [greenlet for greenlet in greenlets if greenlet.parent is hub])
            if hub.loop is not None:
                _end_loop(hub)


def _end_greenlets(hub: Hub, greenlets: list[Greenlet[..., Any]]) -> None:
    """End a hub of this thread, and greenlets of it; somebody (gevent's pools of threads do) may have destroyed it."""
    # The first ends the loop's run. The hub's greenlet then waits in a call that tells of that; the second ends this,
    # too, without which all that stands in its frames would stay in memory.
    for error in (HubDestroyed(True), GreenletExit())[hub.loop is None :]:
        if not hub.dead:
            try:
                hub.throw(error)
            except LoopExit:
                pass
    for greenlet in greenlets:
        try:
            greenlet.throw(GreenletExit())  # it comes back to here: the hub, its parent, is no more
        except (AttributeError, ValueError):  # without a loop it can't tell of its end
            pass


def _end_loop(hub: Hub) -> None:
    """The rest of `Hub.destroy`."""
    if hub.periodic_monitoring_thread is not None:
        hub.periodic_monitoring_thread.kill()
    # By their private names: the public ones make what is not there yet.
    if hub._resolver is not None:  # type: ignore[attr-defined]
        hub.resolver.close()
    pool: Any = hub._threadpool  # type: ignore[attr-defined]
    if pool is not None:
        for _ in range(pool.size):  # its threads look names up; they end by themselves, and nobody waits for them here
            pool.task_queue.put(None)
        pool.fork_watcher.close()
    loop, hub.loop = hub.loop, None  # type: ignore[assignment]  # `call` finds it for no longer than it is there
    loop.destroy()
