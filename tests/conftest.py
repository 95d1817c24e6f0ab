"""For all tests: a time limit, so that nothing hangs, and a look at what is left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from time import monotonic

import gevent
import pytest
from gevent import subprocess

LIMIT = 60  # seconds for a test; `@pytest.mark.limit(seconds)` gives more
SETTLING = 5  # seconds in which closed sockets and ended greenlets may go
DESCRIPTORS = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End a test that waits too long. One that blocks the hub is pytest's `faulthandler_timeout`'s."""
    mark = item.get_closest_marker("limit")
    # No reference to the timer: a loop with nothing else to do is to end in LoopExit at once, as it does for users.
    with gevent.Timeout(mark.args[0] if mark else LIMIT, ref=False):
        return (yield)


def _open() -> tuple[int, int]:
    gc.collect()
    greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())
    return len(os.listdir(DESCRIPTORS)) if DESCRIPTORS else 0, greenlets


@pytest.fixture(scope="session")
def _warm() -> None:
    """Have gevent open what it keeps for ever, before anything is counted."""
    gevent.get_hub().threadpool.apply(int)
    subprocess.call(["true"])
    gc.collect()
    gc.freeze()  # what is there now stays: collecting it before and after each test took most of the time


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beyond `unit`, which opens nothing, a test ends with as many descriptors and greenlets as it began with."""
    if Path(__file__).parent / "unit" in request.path.parents or request.path.parent == Path(__file__).parent:
        yield
        return
    request.getfixturevalue("_warm")
    before = _open()
    yield
    after = _open()
    end = monotonic() + SETTLING
    while any(now > then for now, then in zip(after, before, strict=True)) and monotonic() < end:
        gevent.sleep(0.02)
        after = _open()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (
        f"left open: {after[0] - before[0]} descriptors, {after[1] - before[1]} greenlets"
    )
