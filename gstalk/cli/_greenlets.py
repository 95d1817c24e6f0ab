"""What greenlets are doing, in words; may be asked in a signal handler, and in a thread beside a blocked loop."""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Container
from types import FrameType
from typing import Any

import gevent
from greenlet import greenlet as Switchable  # a class, and `greenlet` is what its objects are called here

__all__ = ["is_running", "others", "place_of", "stack_of_handler"]

HERE = os.path.dirname(__file__)


def is_running(greenlet: Any) -> bool:
    """Whether its thread runs this greenlet, and not another: it has begun, and isn't suspended."""
    # gevent's own `bool` is true for one that has yet to begin, too.
    return greenlet.gr_frame is None and Switchable.__bool__(greenlet)


def stack_of_handler(greenlet: Any, running: FrameType | None) -> list[str]:
    """Where a greenlet is in its handler, a line a call, the innermost last.

    Args:
        greenlet: One that calls a handler.
        running: The frame in which the greenlets' thread is; it is that of the greenlet that runs.
    """
    lines = []
    for each in reversed(_stack(greenlet, running)):
        if os.path.dirname(each.filename) == HERE:
            break  # what called the handler is always the same
        lines.append(f"    {_shown(each)}")
    return lines[::-1]


def others(known: Container[Any], running: FrameType | None) -> list[str]:
    """All other greenlets, those together that are in the same place."""
    places: Counter[str] = Counter()
    for each in gc.get_objects():
        # Not `isinstance`: that asks an object that stands for another one what it is, and runs the program's code.
        if issubclass(type(each), gevent.Greenlet) and not each.dead and each not in known:
            stack = _stack(each, running)
            places[_place(stack) if stack else f"{each!r}, not begun"] += 1
    return [f"  {count} other{'s' * (count > 1)} in {place}" for place, count in places.most_common()]


def place_of(running: FrameType | None) -> str:
    """Where a thread is, as deep as can be, but not in gevent itself."""
    return "nowhere" if running is None else _place(list(traceback.extract_stack(running)))


def _stack(greenlet: Any, running: FrameType | None) -> list[traceback.FrameSummary]:
    frame = running if is_running(greenlet) else greenlet.gr_frame
    return [] if frame is None else list(traceback.extract_stack(frame))


def _place(stack: list[traceback.FrameSummary]) -> str:
    outside = [each for each in stack if f"{os.sep}gevent{os.sep}" not in each.filename]
    return _shown((outside or stack)[-1])


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
