"""A child forked in the middle of gstalk's work, and how it ends: ``fork_endings.py WAY WHERE ENDING URI``.

WAY is how it is forked, WHERE from, ENDING what it does then: "late-" before it means that it lets the hub run first.
The main greenlet is in `receive`, or joins the greenlet that puts. Processes print one line for each thing that they
see; the parent prints the child's exit status, and what it looks like on the server when all is over.
"""

from __future__ import annotations

import sys

if sys.argv[1] in ("patched", "multiprocessing", "pty"):
    from gevent import monkey

    monkey.patch_all()

import json
import multiprocessing
import os
import pty
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.os

import gstalk

WAY, WHERE, ENDING, URI = sys.argv[1:]
PARENT = os.getpid()
JOBS = 6  # in one write, so that several are handed over at a time
wait = os.waitpid if WAY == "bare" else gevent.os.waitpid
done: list[str] = []
over = gevent.event.Event()  # the child has ended


def say(what: str, value: object = None) -> None:
    os.write(1, json.dumps([("parent" if os.getpid() == PARENT else "child"), what, value]).encode() + b"\n")


def end() -> None:
    """In the child."""
    if ENDING.startswith("late-"):
        gevent.sleep(0.3)
    say("works")
    ending = ENDING.removeprefix("late-")
    if ending == "_exit":
        os._exit(3)
    if ending == "exit":
        sys.exit(3)
    if ending == "raise":
        raise ValueError("the child's own")


def fork(ask: Callable[[], object] = int) -> bool:
    """Fork once; whether this is the child, and it hasn't ended yet. The parent waits, and says how it ended."""
    if done:
        return False
    done.append("forked")
    if WAY == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=end)
        process.start()
        process.join()
        say("status", process.exitcode)
        over.set()
        return False
    if WAY == "pty":
        out = os.dup(1)
        pid, _ = pty.fork()
        if not pid:
            os.dup2(out, 1)
    else:
        pid = {"gevent": gevent.os.fork, "patched": os.fork, "bare": os.fork}[WAY]()
    if not pid:
        if WAY == "bare":
            gevent.reinit()
        ask()
        end()
        return True
    while (ended := wait(pid, os.WNOHANG))[0] == 0:
        gevent.sleep(0.01)
    say("status", os.waitstatus_to_exitcode(ended[1]))
    over.set()
    return False


def ask_of(job: gstalk.Job) -> None:
    try:
        job.delete()
    except gstalk.GstalkError as error:
        say("job", type(error).__name__)


def complain(error: BaseException, message: str) -> None:
    if WHERE == "error-hook" and isinstance(error, KeyError):
        fork()
    elif WHERE != "given-up-hook" or os.getpid() != PARENT:  # that failure is the parent's, and told there
        say("error", [repr(error), message.partition(": ")[2]])


def tell(event: gstalk.Event) -> None:
    if event.kind == WHERE.removesuffix("-hook"):
        fork()


def give_up(job: gstalk.Job, error: BaseException) -> None:
    if not fork():
        job.release()


def bodies() -> Iterator[bytes]:
    for number in range(JOBS):
        if number == JOBS // 2 and fork():
            say("goes on")
        yield b"x"


def put_many(putter: Any) -> None:
    try:
        say("ids", len(putter.put_many("work", bodies())))
    except gstalk.GstalkError as error:
        say("failed", type(error).__name__)


def main() -> None:
    if WAY != "bare":
        gevent.get_hub().loop.install_sigchld()  # or gevent misses a child that ends before it has done so itself
    watching = gstalk.dial(URI)
    options: dict[str, Any] = {"error_func": complain, "event_func": tell if WHERE.endswith("-hook") else None}
    gives_up = WHERE == "given-up-hook"
    policy = gstalk.RetryPolicy(first_delay=0, max_attempts=1 if gives_up else 25)
    consumer = gstalk.Consumer(URI, "work", retry=policy, given_up_func=give_up if gives_up else None, **options)
    handled = 0

    def handle(job: gstalk.Job) -> None:
        nonlocal handled
        if WHERE == "handler" and job.body == b"0" and fork(lambda: ask_of(job)):
            return
        if WHERE == "error-hook" and not done:
            raise KeyError
        if WHERE == "given-up-hook" and not done:
            raise KeyError
        if os.getpid() != PARENT:
            say("handles")
        job.delete()
        handled += 1
        if handled == JOBS:
            over.wait()
            consumer.stop()

    if WHERE in ("conn", "producer"):
        putter: Any = gstalk.dial(URI) if WHERE == "conn" else gstalk.Producer(URI, error_func=complain)
        putting = gevent.spawn(put_many, putter)
        putting.join()
    else:
        watching.put_many("work", [b"%d" % number for number in range(JOBS)])
        if WHERE == "beside":
            consumer_runs = gevent.spawn(lambda: consumer.wait_connected() and fork())
        consumer.receive(handle)
        if WHERE == "beside" and os.getpid() == PARENT:
            consumer_runs.join()
    if os.getpid() != PARENT:
        say("main goes on")
        return
    stats = watching.stats_tube("work")
    say("stored", stats.total_jobs)
    say("left", [stats.current_jobs_ready, stats.current_jobs_reserved, stats.current_jobs_delayed])


main()
