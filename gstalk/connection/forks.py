"""Forks: what a child does with all that it has inherited. The only room that registers with `os.register_at_fork`.

A child of `fork` has a copy of every greenlet, timer and watcher, and shares every socket with its parent. A copy that
went on would read the parent's replies and write into the parent's stream. So:

- **The parent notices nothing**, from whatever moment of the fork, also if the fork fails. Its connections are never
  held up for one: other libraries' hooks may put, reserve, or wait for a greenlet that does.
- **The child lets go** of whatever it inherited, in `ORDER`, without a byte said: sockets first, then the rest. That
  never switches, and whatever one of them raises keeps no other from its turn.

**When.** Python calls hooks `before` a fork in the reverse order of their registration, and those after it in the order
of registration. A hook of another library may sleep, take a lock, or put, and so let the hub run: in the child perhaps
before ours has been called, if it was registered before gstalk was imported. Our hooks alone are therefore not enough.
From our own `before` on until our own hook after it, the fork is `under_way`. While one is, whoever is about to touch a
socket, to dial, or to run a handler has a `look` at the process id: in the parent all goes on, in the child the
letting go happens there and then. At all other times this costs a look at an empty list.

What a child makes is its own: `register` looks, too, so that only what was inherited is ever let go.

**What can't be had**

- A fork by C code that leaves out Python's hooks `before` it (uWSGI's) is noticed in the child when Python's hooks
  after it are called, and not before; one that leaves out all of them isn't noticed at all.
- Another process that has inherited the sockets but isn't Python, or a descriptor passed on with `pass_fds`, keeps a
  connection open, and with it its reservations, after both of ours are gone.
- A look-up begun by another library's `before` hook, after ours, may hold a lock of the C library in the child.
- What the program's own greenlets do in the child is the program's: gevent copies them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from gevent import getcurrent
from gevent.hub import Hub
from gevent.monkey import get_original

__all__ = ["forker", "generation", "is_here", "look", "prepare", "register", "under_way"]

ORDER = ("transport", "look-ups", "pipeline", "pool", "consumer", "put queue", "signals")


T = TypeVar("T")
under_way: list[Any] = []  # the greenlets that fork just now: one of them may let another begin
_living: dict[str, WeakKeyDictionary[Any, Callable[[Any], None]]] = {kind: WeakKeyDictionary() for kind in ORDER}
_preparations: list[Callable[[], None]] = []
_native_ident = get_original("_thread", "get_ident")
_process = os.getpid()  # whose all this is
_generation = 0  # how many forks lie between this process and the one that imported us
_forker: Any = None  # the greenlet that forked this process
_early: list[BaseException | None] = []  # what a `look` in this child came to, before our hook was called


def register(kind: str, each: T, let_go: Callable[[T], None]) -> None:
    """Have a child let go of something, for as long as somebody refers to it.

    Args:
        kind: Its place in `ORDER`.
        let_go: Called with it in the child, and only there. Must not switch, nor say anything on a socket.
    """
    if under_way:
        look()
    _living[kind][each] = let_go


def prepare(function: Callable[[], None]) -> None:
    """Have a function called in the parent before each fork. Must not switch."""
    _preparations.append(function)


def look() -> None:
    """Let go of all that is the parent's, if this is the child. Call it where a fork is `under_way`."""
    global _forker
    if os.getpid() != _process:
        _forker = under_way[-1] if under_way else None
        try:
            _let_go()
        except BaseException as error:  # it must not hit whoever looks; our hook tells of it
            _early.append(error)
        else:
            _early.append(None)


def generation() -> int:
    """Tell processes apart: a number that is another one in each child."""
    return _generation


def forker() -> Any:
    """Return the greenlet that forked this process; `None` in one that was started."""
    return _forker


def is_here(hub: Hub) -> bool:
    """Tell whether a hub's thread, and its loop, are in this process: a child has only the thread that forked."""
    return hub.loop is not None and bool(hub.thread_ident == _native_ident())


def _let_go() -> None:
    global _process, _generation
    _process = os.getpid()
    _generation += 1
    _call_all(partial(let_go, each) for kind in ORDER for each, let_go in list(_living[kind].items()))


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    """Call all of them, and then raise what the first one of them has raised."""
    first: BaseException | None = None
    for function in functions:
        try:
            function()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


def _over() -> None:
    me = getcurrent()
    if me in under_way:  # else a signal has hit `_before`, or nobody called it
        under_way.remove(me)


def _before() -> None:
    under_way.append(getcurrent())
    _call_all(_preparations)


def _after_in_child() -> None:
    global _forker
    _forker = getcurrent()
    _over()
    early, _early[:] = list(_early), []
    # A process in a new namespace may have its parent's id, and then no `look` has found it.
    if not early or os.getpid() != _process:
        _let_go()
    for error in early:
        if error is not None:
            raise error  # Python prints it


os.register_at_fork(before=_before, after_in_parent=_over, after_in_child=_after_in_child)
