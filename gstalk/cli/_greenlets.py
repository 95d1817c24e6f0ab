"""What greenlets are doing, in words; may be asked in a signal handler, whoever was interrupted."""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Container
from types import FrameType
from typing import Any

import gevent
from gevent import getcurrent

__all__ = ["others", "stack_of_handler"]

HERE = os.path.dirname(__file__)


def stack_of_handler(greenlet: Any, interrupted: FrameType | None) -> list[str]:
    """Where a greenlet is in its handler, a line a call, the innermost last.

    Args:
        greenlet: One that calls a handler.
        interrupted: The frame that the signal came in, of the greenlet that was running.
    """
    lines = []
    for each in reversed(_stack(greenlet, interrupted)):
        if os.path.dirname(each.filename) == HERE:
            break  # what called the handler is always the same
        lines.append(f"    {each.filename}:{each.lineno}, in {each.name}: {each.line}")
    return lines[::-1]


def others(known: Container[Any], interrupted: FrameType | None) -> list[str]:
    """All other greenlets, those together that are in the same place."""
    places: Counter[str] = Counter()
    for each in gc.get_objects():
        if isinstance(each, gevent.Greenlet) and not each.dead and each not in known:
            places[_place(each, interrupted)] += 1
    return [f"  {count} other{'s' * (count > 1)} in {place}" for place, count in places.most_common()]


def _stack(greenlet: Any, interrupted: FrameType | None) -> list[traceback.FrameSummary]:
    frame = interrupted if greenlet is getcurrent() else greenlet.gr_frame
    return [] if frame is None else list(traceback.extract_stack(frame))


def _place(greenlet: Any, interrupted: FrameType | None) -> str:
    """As deep as can be, but not in gevent itself."""
    for each in reversed(_stack(greenlet, interrupted)):
        if f"{os.sep}gevent{os.sep}" not in each.filename:
            return f"{each.filename}:{each.lineno}, in {each.name}: {each.line}"
    return f"{greenlet!r}, not begun"
