"""Forks under load in a program whose other libraries have hooks of their own: ``fork_hooks.py WHEN WHAT URI FORKS``.

WHEN is where the hooks are registered, before gstalk is imported or after it. WHAT they do, at each of the three times
of a fork: let the hub run by a sleep, wait for a lock that a greenlet holds while it puts, put, or reserve. 64
greenlets put and a Consumer works while the children are forked; each child puts and reserves on its own, and ends.
Each prints one line of what went wrong, the parent the last one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import gevent
import gevent.os
from gevent.lock import Semaphore

WHEN, WHAT, URI, FORKS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
PARENT = os.getpid()
GREENLETS = 64
MULTIPLY = 2  # connections of the Producer
PARENTS = 4 + MULTIPLY  # connections of the parent
do: dict[str, Callable[[], object]] = {}  # what the hooks do, once all is made
problems: list[str] = []
called: list[str] = []


def hook(at: str) -> Callable[[], None]:
    def called_at_a_fork() -> None:
        called.append(at)
        if WHAT in do:
            try:
                with gevent.Timeout(10):
                    do[WHAT]()
            except BaseException as error:
                # A child's Conn is no more; all else is to work there as in the parent.
                if os.getpid() == PARENT or type(error).__name__ != "ConnectionClosedError" or WHAT != "reserve":
                    problems.append(f"{at}: {error!r}")

    return called_at_a_fork


def register() -> None:
    os.register_at_fork(before=hook("before"), after_in_parent=hook("parent"), after_in_child=hook("child"))


if WHEN == "first":
    register()

import gstalk  # noqa: E402  # after the hooks: their order is what this is about
from tests.faults.programs.saying import say  # noqa: E402

if WHEN == "last":
    register()


def main() -> None:
    noted: dict[str, Any] = {
        "error_func": lambda error, message: problems.append(f"{os.getpid() == PARENT} {error!r} {message}")
    }
    producer = gstalk.Producer(URI, multiply=MULTIPLY, **noted)
    conn = gstalk.dial(URI)
    consumer = gstalk.Consumer(URI, "load", **noted)
    watching = gstalk.dial(URI)
    lock = Semaphore()
    acknowledged = 0
    handled = 0
    running = True

    def load() -> None:
        nonlocal acknowledged
        while running and os.getpid() == PARENT:
            try:
                producer.put("load", b"x")
                acknowledged += 1
            except gstalk.GstalkError as error:
                if os.getpid() == PARENT:
                    problems.append(repr(error))

    def hold() -> None:
        while running and os.getpid() == PARENT:
            with lock:
                try:
                    conn.put("hold", b"x")
                except gstalk.ConnectionClosedError:
                    if os.getpid() == PARENT:
                        raise
            gevent.sleep(0.001)

    def handle(job: gstalk.Job) -> None:
        nonlocal handled
        job.delete()
        handled += 1

    def reserve() -> None:
        producer.put("mine", b"x")
        job = reserving.reserve_with_timeout(5)
        assert job is not None
        job.delete()

    reserving = gstalk.dial(URI)
    reserving.watch("mine")
    do["sleep"] = lambda: gevent.sleep(0.02)
    do["lock"] = lambda: lock.acquire() and lock.release()
    do["put"] = lambda: producer.put("hooks", b"x")
    do["reserve"] = reserve
    greenlets = [gevent.spawn(load) for _ in range(GREENLETS)] + [gevent.spawn(hold)]
    receiving = gevent.spawn(consumer.receive, handle)
    consumer.wait_connected()
    while watching.stats().current_connections != PARENTS:
        gevent.sleep(0.001)
    connections = watching.stats().total_connections
    for number in range(FORKS):
        goal = acknowledged + 2 * GREENLETS
        while acknowledged < goal:
            gevent.sleep(0.001)
        # Not gevent's own fork: a hook that lets the hub run may have it reap the child before anybody waits for it.
        pid = gevent.os.fork_gevent()
        if not pid:
            try:
                with gevent.Timeout(10), gstalk.dial(URI) as own:
                    producer.put(f"own-{os.getpid()}", b"x")
                    own.watch(f"own-{os.getpid()}")
                    own.reserve().delete()
                    while len(producer._queue.pool.connections) < MULTIPLY:  # the second one may take its time
                        gevent.sleep(0.001)
            except BaseException as error:
                problems.append(repr(error))
            say(child=number, problems=problems, called=called)
            os._exit(7)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            gevent.sleep(0.001)
        if os.waitstatus_to_exitcode(ended[1]) != 7:
            problems.append(f"child {number} ended with {ended[1]}")
        called.clear()
    running = False
    gevent.joinall(greenlets)
    stored = watching.stats_tube("load").total_jobs
    while handled < acknowledged and not problems:
        gevent.sleep(0.01)
    made = (watching.stats().total_connections or 0) - (connections or 0)
    consumer.stop()
    receiving.join()
    producer.stop()
    say(problems=problems, acknowledged=acknowledged, stored=stored, handled=handled, made=made)


main()
