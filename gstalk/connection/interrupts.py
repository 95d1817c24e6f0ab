"""Ctrl-C while a Consumer receives: where it may be raised, and whom it stops instead.

Python's own handler of SIGINT raises `KeyboardInterrupt` before whatever line comes next. In a Consumer that is busy
the next line is one of gstalk's own now and then, in the hub, in the middle of a reply: then the count of replies is
lost, the connection has to end, and all handlers that work at its jobs lose them. So while `receive` runs, SIGINT has
the handler that lives here. It looks at what it has interrupted, as trio's does.

What is promised, while a `receive` runs in the main thread and nobody else handles SIGINT:

- Every Ctrl-C reaches every such `receive`. It is told of it in its hub, and stops: the first time as `stop()` does,
  the second time as `stop(0)`. When it has ended, it raises the first `KeyboardInterrupt`.
- If a handler computes, `KeyboardInterrupt` is raised in it, too; so it ends, and its job is released. It computes if
  the innermost frame is the program's own, or a library's that it calls, with no frame of gstalk between it and the
  call of the handler. What gstalk itself calls, such as the hooks of a Config or the bodies of a `put_many`, is the
  program's code in the middle of gstalk's work: nothing is raised there, nor in gevent's own lines.
- Nothing is raised anywhere else, but for one case: nobody has looked at a Ctrl-C for a second (`HELD`). Then some code
  of the program doesn't let go of the hub. The next Ctrl-C is raised there, wherever that is, unless the innermost
  frame is gstalk's or gevent's: else such a program could not be ended from the keyboard.
- When the last `receive` is over, Python's handler is back, unless somebody else's has taken its place meanwhile.

What can't be had:

- A handler that is a C function, or one that waits in a C function without gevent, isn't raised in where Python does
  not look: its frame is that of its caller.
- Where no `receive` runs, Ctrl-C is Python's: it may strike any line, and that connection ends.
- The same is true of another handler that raises: gstalk replaces none but Python's own.
- A Ctrl-C in the instant in which libev goes to sleep is noticed by gevent a third of a second later; on Python 3.14
  (with gevent 26.9) only when something else wakes it.

Nothing of this costs anything before Ctrl-C comes: the function that calls handlers is known by its code object.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container
from importlib import import_module
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar

from gevent import GreenletExit, getcurrent

from gstalk.connection import forks
from gstalk.connection.clock import monotonic

__all__ = ["ENDS", "HELD", "STOPS", "CtrlC", "calls_handlers"]

STOPS = (GreenletExit, KeyboardInterrupt)  # what stops a greenlet from outside: a kill, and Ctrl-C
ENDS = (*STOPS, SystemExit)  # and what ends the process: these three pass
HELD = 1.0  # seconds without a look at a Ctrl-C after which the next is raised in whatever holds the hub

Function = TypeVar("Function", bound=Callable[..., Any])

_calling: set[CodeType] = set()  # what calls handlers
_receiving: list[CtrlC] = []


def calls_handlers(function: Function) -> Function:
    """Mark a function that calls handlers: what runs below it, with nothing of gstalk between, is the program's own."""
    _calling.add(function.__code__)
    return function


class CtrlC:
    """What Ctrl-C means to one `receive`; a context manager around all of it.

    Attributes:
        working: The greenlets in which its handlers run.
        wake: Called in the signal handler when there is something to `take`; must not switch.
    """

    def __init__(self) -> None:
        self.working: Container[Any] = ()
        self.wake: Callable[[], object] | None = None
        self.pid = os.getpid()
        self._untaken: list[KeyboardInterrupt] = []
        self._since = 0.0  # when the first of these came

    def __enter__(self) -> CtrlC:
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _on_sigint) and _is_pythons():
            try:
                signal.signal(signal.SIGINT, _on_sigint)
            except ValueError:  # another thread than the main one
                return self
            _receiving.append(self)  # last: a Ctrl-C that comes before is as if `receive` had not been called
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self not in _receiving:
            return
        _receiving.remove(self)  # first: from here on `_on_sigint` does as Python's own, if nobody else receives
        if not _receiving:
            _restore()
        if error is None and self._untaken:  # it came when nobody looked any more
            raise self._untaken.pop()

    def take(self) -> list[KeyboardInterrupt]:
        """Take what has come since the last time."""
        untaken, self._untaken = self._untaken, []
        return untaken

    def tell(self, error: KeyboardInterrupt) -> None:
        """In the signal handler: this is for the `receive`."""
        if not self._untaken:
            self._since = monotonic()
        self._untaken.append(error)
        if self.wake is not None:
            self.wake()

    @property
    def is_held(self) -> bool:
        """Whether a Ctrl-C was told of a while ago, and nobody has come to take it."""
        return bool(self._untaken) and monotonic() - self._since >= HELD


def _on_sigint(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT while somebody receives."""
    receiving = [each for each in _receiving if each.pid == os.getpid()]
    if not receiving:  # `receive` begins or is over; or this is a child, forked in its middle
        _restore()
        signal.default_int_handler(number, frame)
    error = KeyboardInterrupt()
    raised = _is_the_programs(frame, any(each.is_held for each in receiving))
    for each in receiving:  # each gets an object of its own, but for the one whose handler is hit: it leaves that, too
        each.tell(error if raised and getcurrent() in each.working else KeyboardInterrupt())
    if raised:
        try:
            raise error
        finally:
            del error  # the traceback would hold the frame, and the frame the error


def _is_the_programs(frame: FrameType | None, anywhere: bool) -> bool:
    """Tell whether the code that was interrupted is the program's own, and a handler's, or `anywhere`."""
    if frame is None or _package(frame) in ("gstalk", "gevent"):
        return False
    while frame is not None and not anywhere:
        if frame.f_code in _calling:
            return True
        if _package(frame) == "gstalk":
            return False
        frame = frame.f_back
    return anywhere


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _restore() -> None:
    """Put Python's handler back, if ours is still in place."""
    if signal.getsignal(signal.SIGINT) is _on_sigint and _is_pythons():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_pythons() -> bool:
    """Tell whether the system calls Python at SIGINT, and so the handler that `getsignal` tells of.

    `gevent.signal_handler` puts the event loop's function in that place, which `getsignal` doesn't know. Only the
    system can tell: the library in which its function lies is that of Python itself. Where it can't be asked,
    `getsignal` is believed.
    """
    try:
        ctypes = import_module("ctypes")  # here, since a program that only puts has no use for it
        system = ctypes.CDLL(None)
        sigaction, dladdr = system.sigaction, system.dladdr
        python = ctypes.cast(ctypes.pythonapi.PyErr_CheckSignals, ctypes.c_void_p).value
    except (ImportError, AttributeError, OSError):
        return True
    action = (ctypes.c_void_p * 128)()  # a struct sigaction: the function comes first
    sigaction(int(signal.SIGINT), None, action)

    def library(function: int | None) -> int | None:
        found = (ctypes.c_void_p * 4)()  # a Dl_info: name and address of the library, then of the function
        dladdr(ctypes.c_void_p(function), found)
        base: int | None = found[1]
        return base

    return library(python) is None or library(action[0]) == library(python)


class _Inherited:
    """What a child has of its parent's: it is another program, and nothing of the `receive` there is its business."""

    def forked(self) -> None:
        if _receiving:
            _receiving.clear()
            _restore()


_inherited = _Inherited()
forks.register("signals", _inherited, _Inherited.forked)
