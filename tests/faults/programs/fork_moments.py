"""Forks at moments of all kinds: ``fork_moments.py SCENARIO URI``.

Each process prints what it saw; the last line is the parent's.
"""

from __future__ import annotations

import os
import pwd
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import gevent.os
from gevent import socket
from gevent.monkey import get_original

import gstalk
from gstalk.connection import forks
from tests.faults.programs.saying import outcome, say

URI = sys.argv[2]
PARENT = os.getpid()
problems: list[str] = []
quiet: dict[str, Any] = {"info_func": lambda message: None, "error_func": lambda error, message: None}


def fork(work: Callable[[], object]) -> Callable[[], None]:
    """Have a child do something; returns what waits for its end in the parent."""
    pid = gevent.os.fork_gevent()
    if not pid:
        try:
            with gevent.Timeout(10):
                work()
        except BaseException as error:
            say(error=repr(error))
        os._exit(7)

    def wait() -> None:
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            gevent.sleep(0.005)
        if os.waitstatus_to_exitcode(ended[1]) != 7:
            problems.append(f"a child ended with {ended[1]}")

    return wait


class Load:
    """Greenlets that put on a Conn and on a Producer; what is stored must be what they were told."""

    def __init__(self, greenlets: int = 16) -> None:
        self.conn = gstalk.dial(URI)
        self.producer = gstalk.Producer(URI, multiply=2)
        self.acknowledged = 0
        self._running = True
        self._greenlets = [
            gevent.spawn(self._put, putter.put) for putter in (self.conn, self.producer) for _ in range(greenlets)
        ]
        self.go_on()

    def _put(self, put: Callable[..., object]) -> None:
        while self._running and os.getpid() == PARENT:
            try:
                put("load", b"x")
                self.acknowledged += 1
            except gstalk.GstalkError as error:
                if os.getpid() == PARENT:
                    problems.append(repr(error))
                    return

    def go_on(self) -> None:
        goal = self.acknowledged + 200
        while self.acknowledged < goal and not problems:
            gevent.sleep(0.001)

    def end(self) -> None:
        self.go_on()
        self._running = False
        gevent.joinall(self._greenlets)
        with gstalk.dial(URI) as conn:
            stored = conn.stats_tube("load").total_jobs
        say(problems=problems, acknowledged=self.acknowledged, stored=stored)


def work_on_its_own() -> None:
    """In a child: copies are gone, and all that it makes works."""
    gevent.sleep(0.05)
    tube = f"own-{os.getpid()}"
    with gstalk.Producer(URI) as producer, gstalk.dial(URI) as conn:
        producer.put(tube, b"x")
        conn.watch(tube)
        conn.reserve().release()
        consumer = gstalk.Consumer(URI, tube)

        def handle(job: gstalk.Job) -> None:
            job.delete()
            consumer.stop()

        consumer.receive(handle)
    say(child="works")


def no_descriptor_left() -> None:
    load = Load()
    for at_once in (False, True):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        if at_once:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass

        def child(taken: list[int] = taken, limit: tuple[int, int] = limit) -> None:
            load_says = outcome(lambda: load.conn.put("load", b"x"))
            for each in taken:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            say(child=load_says)
            work_on_its_own()

        # Not gevent's: its loop needs a descriptor of its own in the child, and ends the process without one.
        pid = os.fork()
        if not pid:
            for each in taken:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            gevent.reinit()
            taken.clear()
            try:
                child()
            except BaseException as error:
                say(error=repr(error))
            os._exit(7)
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            gevent.sleep(0.005)
    load.end()


def fork_fails() -> None:
    load = Load()
    if os.getuid() == 0:
        os.setuid(pwd.getpwnam("nobody").pw_uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for _ in range(10):
        say(fork=outcome(os.fork))
        load.go_on()
    load.end()


def child_of_a_child() -> None:
    load = Load()

    def child() -> None:
        say(child=outcome(lambda: load.conn.put("load", b"x")))
        load.producer.put("own", b"x")
        conn = gstalk.dial(URI)

        def grandchild() -> None:
            say(grandchild=outcome(lambda: conn.put("load", b"x")))
            load.producer.put("own", b"x")
            work_on_its_own()

        fork(grandchild)()
        conn.put("own", b"x")
        work_on_its_own()

    for _ in range(5):
        fork(child)()
        load.go_on()
    load.end()


def in_a_thread() -> None:
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # from Python 3.12 on
    load = Load()
    holding = gstalk.dial(URI)
    holding.watch("held")
    holding.put("held", b"x")
    job = holding.reserve()
    ended = []

    def forking() -> None:
        pid = os.fork()
        if not pid:
            try:
                say(child=[outcome(lambda: load.conn.put("load", b"x")), outcome(job.delete), outcome(job.touch)])
                load.producer.put("own", b"x")
                work_on_its_own()
            except BaseException as error:
                say(error=repr(error))
            os._exit(7)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    for number in range(10):
        threading.Thread(target=forking).start()
        while len(ended) <= number:
            gevent.sleep(0.001)
    job.delete()
    problems.extend(f"a child ended with {each}" for each in ended if each != 7)
    load.end()


def by_subprocess() -> None:
    load = Load()
    for _ in range(20):
        subprocess.Popen(["true"], preexec_fn=lambda: None).wait()
        load.go_on()
    load.end()


def look_up() -> None:
    """A name is being looked up by a thread, which the child doesn't have."""
    socket.getaddrinfo = lambda *_, **__: gevent.get_hub().threadpool.apply(get_original("time", "sleep"), (1,)) or []
    producer = gstalk.Producer("nowhere.invalid", **quiet)
    ends = []
    dialing = gevent.spawn(lambda: ends.append(outcome(lambda: gstalk.dial("nowhere.invalid"))))
    gevent.sleep(0.05)

    def child() -> None:
        began = monotonic()
        dialing.join()
        say(child=[*ends, monotonic() - began < 3])  # a dial that waits ends after 5
        work_on_its_own()

    wait = fork(child)
    dialing.join()
    wait()
    producer.stop()
    say(problems=problems, parent=ends)


def redial() -> None:
    """A waiting reserve is being recalled."""
    for number in range(30):
        conn = gstalk.dial(URI)
        conn.watch(f"tube-{number}")
        ends: list[str] = []
        reserving = gevent.spawn(lambda: ends.append(outcome(lambda: conn.reserve().delete())))  # noqa: B023
        gevent.sleep(0.005)
        putting = gevent.spawn(lambda: ends.append(outcome(lambda: conn.put(f"tube-{number}", b"x"))))  # noqa: B023
        gevent.sleep(number % 5 / 5000)
        wait = fork(lambda: gevent.sleep(0.02))
        with gevent.Timeout(5):
            gevent.joinall([putting, reserving], raise_error=True)
            wait()
        problems.extend(each for each in ends if each != "done")
        conn.close()
    say(problems=problems)


def stop() -> None:
    """Producer and Consumer are being stopped."""
    watching = gstalk.dial(URI)
    watching.watch("stopping")  # a tube without a job, and without anybody who watches it, is forgotten
    for number in range(20):
        handled: list[gstalk.Job] = []
        producer = gstalk.Producer(URI, multiply=2)
        consumer = gstalk.Consumer(URI, "stopping", **quiet)

        def handle(job: gstalk.Job, handled: list[gstalk.Job] = handled) -> None:
            gevent.sleep(0.01)
            job.delete()
            handled.append(job)

        receiving = gevent.spawn(consumer.receive, handle)
        putters = [gevent.spawn(producer.put, "stopping", b"x") for _ in range(20)]
        while not handled:
            gevent.sleep(0.001)
        consumer.stop()
        stopping = gevent.spawn(producer.stop)
        gevent.sleep(number % 5 / 2500)

        def child(
            receiving: gevent.Greenlet[..., Any] = receiving, stopping: gevent.Greenlet[..., Any] = stopping
        ) -> None:
            with gevent.Timeout(5):
                receiving.join()
                stopping.join()

        wait = fork(child)
        with gevent.Timeout(5):
            receiving.get()
            stopping.get()
            gevent.joinall(putters, raise_error=True)
            wait()
    stats = watching.stats_tube("stopping")
    say(problems=problems, stored=stats.total_jobs, reserved=stats.current_jobs_reserved)


class _Broken:
    def forked(self) -> None:
        raise ValueError("this one can't let go")


def broken_hook() -> None:
    load = Load()
    broken = [_Broken() for _ in forks.ORDER]
    for kind, each in zip(forks.ORDER, broken, strict=True):
        forks.register(kind, each, _Broken.forked)

    def child() -> None:
        say(child=outcome(lambda: load.conn.put("load", b"x")))
        load.producer.put("own", b"x")
        work_on_its_own()

    fork(child)()
    load.end()


globals()[sys.argv[1]]()
