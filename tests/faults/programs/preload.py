"""A server that preloads and forks, as gunicorn's does, under load: ``preload.py STYLE URI CAFILE``.

Conn, Producer and a running Consumer are made before the fork. 8 children are forked while all three are at work; they
look at their copies, work on connections of their own, and then idle for a second. Each prints one line of what it
saw, the parent the last one.
"""

from __future__ import annotations

import sys

if sys.argv[1] in ("patched", "multiprocessing"):
    from gevent import monkey

    monkey.patch_all()

import gc
import itertools
import json
import multiprocessing
import os
import ssl
from collections import Counter
from collections.abc import Callable
from time import monotonic, process_time
from typing import Any

import gevent
import gevent.os

import gstalk
from tests.faults.programs.saying import outcome

STYLE, URI = sys.argv[1], sys.argv[2]
OPTIONS: dict[str, Any] = {"tls_context": ssl.create_default_context(cafile=sys.argv[3])} if sys.argv[3] else {}
PARENT = os.getpid()
CHILDREN = 8
MULTIPLY = 2  # connections of the Producer
PARENTS = 3 + MULTIPLY  # connections of the parent
BETWEEN = 100  # puts that the parent has answered between two forks
ALIVE = 1.0  # seconds that a child idles while its CPU time is looked at

numbers = itertools.count()
acknowledged: list[bytes] = []
handled: Counter[bytes] = Counter()
problems: list[str] = []  # of this process
ends: Counter[str] = Counter()  # how copies of the parent's greenlets ended in this process
forked = gevent.event.Event()


def say(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def note(error: object, message: object = "") -> None:
    problems.append(f"{error!r} {message}")


def complained(error: BaseException, message: str) -> None:
    """The `error_func`; in a child it may tell of the handlers that were copied there, and of their lost jobs."""
    if os.getpid() == PARENT or not message.startswith("job "):
        note(error, message)


def wait_until(holds: Callable[[], object]) -> bool:
    end = monotonic() + 20
    while not holds() and monotonic() < end:
        gevent.sleep(0.01)
    return bool(holds())


# -- the load ----------------------------------------------------------------------------------------------------


def echo(conn: gstalk.Conn, times: int | None = None) -> None:
    """Put and look again: each reply is one's own."""
    while (os.getpid() == PARENT and not forked.is_set()) or times:
        times = times and times - 1
        body = b"%d-%d" % (os.getpid(), next(numbers))
        job_id = conn.put("echo", body, delay=1000)
        job = conn.peek(job_id)
        if job is None or job.body != body:
            note("misdelivered", f"{job!r} to {body!r}")
        conn.delete(job_id)


def produce(producer: gstalk.Producer) -> None:
    while os.getpid() == PARENT and not forked.is_set():
        body = b"work-%d" % next(numbers)
        producer.put("work", body)
        acknowledged.append(body)


def handle(job: gstalk.Job) -> None:
    if job.body == b"slow":
        forked.wait()
    job.delete()
    handled[job.body] += 1


def copied(function: Callable[..., object]) -> Callable[..., None]:
    """In the parent nothing may go wrong; in a child the copies of its greenlets say how they ended."""

    def run(*args: object) -> None:
        end = "done"
        try:
            function(*args)
        except Exception as error:
            end = type(error).__name__
            if os.getpid() == PARENT:
                note(error)
            elif args and isinstance(args[0], gstalk.Job):
                raise
        finally:
            if os.getpid() != PARENT:
                ends[f"{function.__name__} {end}"] += 1

    return run


# -- a child -----------------------------------------------------------------------------------------------------


def child(number: int, conn: gstalk.Conn, job: gstalk.Job, producer: gstalk.Producer) -> None:
    if STYLE == "bare":
        gevent.reinit()
    forked.set()
    copies = [outcome(conn.stats), outcome(lambda: conn.put("echo", b"")), outcome(job.delete), outcome(job.touch)]
    tube = f"child-{number}"
    bodies = [b"%d-%d" % (number, each) for each in range(20)]
    for body in bodies[:10]:
        producer.put(tube, body)
    producer.put_many(tube, bodies[10:])
    got: list[bytes] = []

    def work(job: gstalk.Job) -> None:
        got.append(job.body)
        job.delete()
        if len(got) == len(bodies):
            consumer.stop()

    consumer = gstalk.Consumer(URI, tube, **OPTIONS)
    consumer.receive(work)
    with gstalk.dial(URI, **OPTIONS) as own:
        gevent.joinall([gevent.spawn(echo, own, 20) for _ in range(5)], raise_error=True)
    wait_until(lambda: len(producer._queue.pool.connections) == MULTIPLY)  # the second one may take its time
    producer.stop()
    begin = process_time()
    gevent.sleep(ALIVE)
    spent = process_time() - begin
    names = [each.name for each in gc.get_objects() if isinstance(each, gevent.Greenlet) and not each.dead]
    say(
        {
            "copies": copies,
            "own": sorted(got) == sorted(bodies),
            "cpu": spent,
            "keepers": names.count("gstalk-keeper"),
            "ends": ends,
            "problems": problems,
        }
    )


def fork(*args: Any) -> Callable[[], bool]:
    """Run `child` in a new process; returns what asks whether it has ended."""
    if STYLE == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child, args=args)
        process.start()
        return lambda: process.exitcode is not None
    pid = gevent.os.fork() if STYLE == "gevent" else os.fork()
    if not pid:
        try:
            child(*args)
        except BaseException as error:
            say({"error": repr(error)})
        os._exit(0)
    if STYLE == "bare":
        return lambda: os.waitpid(pid, os.WNOHANG)[0] == pid
    return lambda: gevent.os.waitpid(pid, os.WNOHANG)[0] == pid


# -- the parent --------------------------------------------------------------------------------------------------


def connections(conn: gstalk.Conn) -> tuple[int, int]:
    """How many the server has, and how many it ever had."""
    stats = conn.stats()
    return stats.current_connections or 0, stats.total_connections or 0


def main() -> None:
    watching = gstalk.dial(URI, **OPTIONS)
    conn = gstalk.dial(URI, **OPTIONS)
    conn.watch("held")
    producer = gstalk.Producer(URI, multiply=MULTIPLY, info_func=note, error_func=complained, **OPTIONS)
    consumer = gstalk.Consumer(URI, "work", info_func=note, error_func=complained, **OPTIONS)
    held = []
    for _ in range(5):
        conn.put("held", b"held")
        held.append(conn.reserve())
    for _ in range(3):
        conn.put("work", b"slow", priority=0)
    receiving = gevent.spawn(consumer.receive, copied(handle))
    consumer.wait_connected()
    producer.wait_connected()
    load = [gevent.spawn(copied(echo), conn) for _ in range(8)] + [
        gevent.spawn(copied(produce), producer) for _ in range(8)
    ]
    wait_until(lambda: (watching.stats_tube("work").current_jobs_reserved or 0) >= 3)
    wait_until(lambda: connections(watching)[0] == PARENTS)
    before = connections(watching)
    running = []
    for number in range(CHILDREN):
        goal = len(acknowledged) + BETWEEN
        wait_until(lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]
        running.append(fork(number, conn, held[0], producer))
    while running:
        running = [has_ended for has_ended in running if not has_ended()]
        gevent.sleep(0.02)
    reserved = watching.stats_tube("held").current_jobs_reserved
    forked.set()
    gevent.joinall(load)
    all_handled = wait_until(lambda: sum(handled.values()) >= len(acknowledged) + 3)
    after = connections(watching)
    deleted = [outcome(job.delete) for job in held]
    consumer.stop()
    receiving.join()
    producer.stop()
    say(
        {
            "problems": problems,
            "put": len(acknowledged),
            "lost": len(set(acknowledged) - set(handled)),
            "doubled": sum(times > 1 for body, times in handled.items() if body != b"slow"),
            "all handled": all_handled,
            "slow": handled[b"slow"],
            "reserved": reserved,
            "deleted": deleted,
            "more connections": after[0] - before[0],
            "new connections": after[1] - before[1],
        }
    )
    conn.close()
    watching.close()


main()
