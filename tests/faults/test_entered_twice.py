"""A signal handler that uses gstalk may run between any two lines of gstalk: it works, or is refused with nothing sent.

A trace function calls it where Python would: before a line, in whichever greenlet is at work. `__del__` methods and
callbacks of weak references come in the same way.
"""

from __future__ import annotations

import itertools
import linecache
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from tests.faults.test_signal_everywhere import in_hub

pytestmark = [pytest.mark.real, pytest.mark.slow]

OURS = "/gstalk/"


class Handler:
    """Calls `call` once: before the line of that number, among those that gstalk runs in traced greenlets."""

    def __init__(self, number: int, call: Callable[[], object]) -> None:
        self.number = number
        self.call = call
        self.lines = 0
        self.where = ""
        self.result: Any = None

    def trace(self, frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename or ""
        if OURS not in path or "/testing/" in path or "/tests/" in path:
            return None
        # Between the line's start and its call Python runs no signal handler, and here that would lose a switch.
        if event == "line" and not self.where and linecache.getline(path, frame.f_lineno).strip() != "switch()":
            self.lines += 1
            if self.lines == self.number:
                self.where = f"{path.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
                try:
                    self.result = self.call()
                except (BlockingSwitchOutError, gstalk.GstalkError) as error:
                    self.result = error
        return self.trace

    def run(self, call: Callable[[], object], hub: bool = False) -> Any:
        """What `call` comes to in a greenlet that is traced; with `hub` the hub is traced instead."""
        greenlet = gevent.spawn(call if hub else partial(self._traced, call))
        if hub:
            in_hub(sys.settrace, self.trace)
        try:
            with gevent.Timeout(5, AssertionError(f"stuck after {self.where}")):
                return greenlet.get()
        finally:
            if hub:
                in_hub(sys.settrace, None)

    def _traced(self, call: Callable[[], object]) -> object:
        sys.settrace(self.trace)
        try:
            return call()
        finally:
            sys.settrace(None)


def test_put_struck_by_puts(server, connect, other, tube):
    outcomes: Counter[str] = Counter()
    conn = connect()
    for number in itertools.count(1):
        conn.use("default")
        handler = Handler(number, partial(conn.put, f"{tube}-2", b"handler"))
        job_id = handler.run(partial(conn.put, tube, b"outer"))
        job = other.peek(job_id)
        other.delete(job_id)
        assert job.body == b"outer", handler.where
        assert other.stats_job
        outcomes[type(handler.result).__name__] += 1
        if not handler.where:
            break
        if isinstance(handler.result, int):
            assert other.peek(handler.result).body == b"handler", handler.where
            assert other.stats_job(handler.result).tube == f"{tube}-2", handler.where
            other.delete(handler.result)
    print(outcomes)
