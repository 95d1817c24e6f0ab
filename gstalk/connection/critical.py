"""Steps that must not be entered twice.

Greenlets switch only where they wait, so most of gstalk needs no lock. But a Python signal handler runs between any two
lines of whatever greenlet is at work, and so do `__del__` methods, callbacks of weak references and trace functions.
One of these that puts a job while this greenlet is in the middle of putting another one would find the connection half
changed: replies would reach the wrong caller.

So each hub has one `CriticalSection`. A greenlet is inside while it changes what belongs to a connection or a pool, and
outside while it waits and while the program's own code runs. Whoever comes while somebody is inside:

- in the same greenlet (a signal handler): `BlockingSwitchOutError` at once, nothing was sent. To let it in is
  impossible: it would wait for what only the interrupted lines can send.
- in another greenlet, which happens only while a signal handler sleeps in the middle of our lines: waits until the
  first one is outside again.
- the hub's callbacks: likewise, they are put off (`is_free`).

In the hub itself nothing needs this: gevent refuses to wait there, and so do our calls.

An exception that strikes on the very line by which a greenlet leaves would leave it inside for ever. Therefore whoever
finds somebody inside looks whether he really is: whether a function that is marked `critical` is among his frames.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from gevent import get_hub, getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

__all__ = ["AGAIN", "CriticalSection", "critical", "refusal", "section_of"]

Function = TypeVar("Function", bound=Callable[..., Any])

AGAIN = 0.001  # seconds between two looks whether the other one is outside

_codes: set[CodeType] = set()
_sections: WeakKeyDictionary[Hub, CriticalSection] = WeakKeyDictionary()


class CriticalSection:
    """What one greenlet of a hub at a time may be inside of. Also a context manager, for steps that aren't hot.

    Attributes:
        owner: The greenlet that is inside; `None`: nobody. A hot path sets it itself, in a `try`.
        is_hub_inside: Whether a callback of ours is under way in the hub (`connection.loop`).
    """

    __slots__ = ("is_hub_inside", "owner")

    def __init__(self) -> None:
        # It does not refer to the hub: `_sections` would keep that for ever.
        self.owner: Any = None
        self.is_hub_inside = False

    def __enter__(self) -> None:
        if self.owner is not None:
            self.wait()
        self.owner = getcurrent()

    def __exit__(self, *_: object) -> None:
        self.owner = None

    @property
    def is_interrupted(self) -> bool:
        """Whether this runs in the middle of a callback of ours in the hub: in a signal handler, or a finalizer."""
        return self.is_hub_inside and isinstance(getcurrent(), Hub)

    @property
    def is_free(self) -> bool:
        """Whether nobody is inside. For the hub's callbacks, which can't wait."""
        if self.owner is not None and not self._is_inside(self.owner):
            self.owner = None
        return self.owner is None

    def wait(self) -> None:
        """Return when nobody is inside.

        Raises:
            BlockingSwitchOutError: This greenlet is: it runs a signal handler, or the like, in the middle of our lines.
        """
        while not self.is_free:
            if self.owner is getcurrent():
                raise refusal()
            hub = get_hub()
            timer = hub.loop.timer(AGAIN)
            try:
                hub.wait(timer)
            finally:
                timer.close()

    def _is_inside(self, owner: Any) -> bool:
        """Look among a greenlet's frames; of this one's, those of whoever has made the call that asks."""
        frame: FrameType | None
        if owner is getcurrent():
            frame = sys._getframe(1)
            # On top stand the frames of that call, all of them gstalk's. Behind them comes the program's own code, for
            # instance a signal handler, and behind that what it has interrupted.
            while frame is not None and _is_gstalks(frame):
                frame = frame.f_back
        else:
            frame = owner.gr_frame
        while frame is not None and frame.f_code not in _codes:
            frame = frame.f_back
        return frame is not None


def refusal() -> BlockingSwitchOutError:
    """Build the error of a call in the middle of a step, with nothing sent."""
    return BlockingSwitchOutError(
        "gstalk was interrupted in the middle of a step, perhaps by a signal handler, and can't be called "
        "from there: spawn a greenlet for it"
    )


def critical(function: Function) -> Function:
    """Mark a function that enters its hub's section, so that it can be found among the frames of who is inside."""
    _codes.add(function.__code__)
    return function


def _is_gstalks(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "gstalk"


def section_of(hub: Hub) -> CriticalSection:
    """The hub's one section."""
    section = _sections.get(hub)
    if section is None:
        section = _sections[hub] = CriticalSection()
    return section
