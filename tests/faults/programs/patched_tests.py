"""Tests in a patch mode, with a look at the hub: ``patched_tests.py MODE PYTEST_ARGUMENT...``.

MODE is "unpatched", "before" or "after" (the import of what is tested), "no-thread", or one that has a fault: "sleeps"
or "computes".

A ticker greenlet ticks every 5 ms. A hub that is held longer than 50 ms (more on a slower machine) is late with it. A
second, native thread sees that while it goes on, and looks every few milliseconds at what the main thread's innermost
frame of ours is: one of gstalk's, or one of the tests' (which start processes, make certificates and collect garbage).
Only where it was gstalk, or something that gstalk called, is it a fault. What counts is the time for which the main
thread had a processor, and that for which it slept, as far as the watching thread itself ran meanwhile.

It prints one line of JSON at the end: pytest's exit code, how many tests passed, and the holds found.
"""

from __future__ import annotations

import sys

if sys.argv[1] in ("before", "no-thread"):
    from gevent import monkey

    monkey.patch_all(thread=sys.argv[1] != "no-thread")

import json
import os
from collections import Counter, defaultdict
from time import clock_gettime, monotonic, pthread_getcpuclockid, thread_time
from typing import Any

import gevent
import gevent.monkey
import pytest

from tests.speed import slowness

if sys.argv[1] == "after":
    import gstalk.testing

    assert gstalk.testing
    gevent.monkey.patch_all()

FAULTS = {
    "sleeps": "def _tune(sock): sleep({})",
    "computes": "def _tune(sock):\n    end = time() + {}\n    while time() < end: pass",
}
TICK = 0.005
LIMIT = 0.05 * slowness()
SLICE = 0.003
ROOT = os.getcwd()
native_sleep = gevent.monkey.get_original("time", "sleep")
start_native = gevent.monkey.get_original("_thread", "start_new_thread")
main_thread = gevent.monkey.get_original("_thread", "get_ident")()
main_clock = pthread_getcpuclockid(main_thread)


def is_ready() -> bool:
    """Whether the main thread is ready to run; no where nobody tells."""
    try:
        with open("/proc/self/stat") as state:
            return state.read().rpartition(") ")[2].startswith("R")
    except OSError:
        return False


def ours(frame: Any) -> str:
    """The innermost frame that is gstalk's or the tests', as ``path:line``."""
    while frame is not None:
        path = os.path.relpath(frame.f_code.co_filename, ROOT)
        if path.startswith(("gstalk", "tests")):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def is_gstalk(place: str) -> bool:
    return place.startswith("gstalk") and not place.startswith(os.path.join("gstalk", "testing"))


class Ticker:
    """Ticks in the hub, and is watched from a native thread."""

    def __init__(self) -> None:
        self.at = monotonic()
        self.ticks = 0
        self.holds: Counter[str] = Counter()  # gstalk's, by place
        self.elsewhere = 0  # the tests' own

    def tick(self) -> None:
        while True:
            gevent.sleep(TICK, ref=False)
            self.at = monotonic()
            self.ticks += 1

    def watch(self) -> None:
        held: defaultdict[str, float] = defaultdict(float)  # seconds by place, since the last tick
        tick, before, ran = self.ticks, monotonic(), clock_gettime(main_clock)
        while True:
            native_sleep(SLICE)
            sleeps, now, ran_now = not is_ready(), monotonic(), clock_gettime(main_clock)
            if self.ticks != tick:
                tick = self.ticks
                held.clear()
            else:
                place = ours(sys._current_frames().get(main_thread))
                # What this thread itself slept through, and what the main one was kept from, is the machine's. The look
                # at /proc lets a main thread that computes have Python's lock, and may take long: that counts as run.
                held[place] += ran_now - ran + sleeps * min(now - before - (ran_now - ran), 3 * SLICE)
                if sum(held.values()) > LIMIT:
                    self.judge(held)
                    held.clear()
            before, ran = now, ran_now

    def judge(self, held: dict[str, float]) -> None:
        by_gstalk = sum(seconds for place, seconds in held.items() if is_gstalk(place))
        if by_gstalk > LIMIT / 2:
            self.holds[max(held, key=lambda place: held[place] * is_gstalk(place))] += 1
        else:
            self.elsewhere += 1


class Plugin:
    def __init__(self) -> None:
        self.ticker = Ticker()
        self.passed = 0

    def pytest_collection_finish(self) -> None:
        # From here on, since importing the tests holds the hub too.
        self.greenlet = gevent.spawn(self.ticker.tick)
        gevent.sleep(0)
        start_native(self.ticker.watch, ())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed


if __name__ == "__main__":
    if sys.argv[1] in FAULTS:  # each TCP connection's making holds the hub, by code that passes for gstalk's own
        from gstalk.connection import transport

        code = compile(FAULTS[sys.argv[1]].format(2 * LIMIT), transport.__file__, "exec")
        exec(code, {"sleep": native_sleep, "time": thread_time}, vars(transport))
    plugin = Plugin()
    # pytest finds in the checkout's metadata that `tests` belongs to a plugin's package, and it runs already.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    result = pytest.main([*options, *sys.argv[2:]], plugins=[plugin])
    ticker = plugin.ticker
    said = {"code": result, "passed": plugin.passed, "ticks": ticker.ticks, "tests": ticker.elsewhere}
    print(json.dumps(said | {"holds": ticker.holds}))
