"""Programs that end, or want to: ``exits.py SCENARIO URI PATCHED CAFILE``.

Each prints `monotonic()`, which all processes of a machine share, when it has come to its end.
"""

from __future__ import annotations

import sys

from gevent import monkey

if sys.argv[3] == "patched":
    monkey.patch_all()

import gc
import json
import os
import ssl
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.monkey import get_original

import gstalk

blocking_sleep = get_original("time", "sleep")
URI = sys.argv[2]
OPTIONS: dict[str, Any] = {"tls_context": ssl.create_default_context(cafile=sys.argv[4])} if sys.argv[4] else {}
kept: list[Any] = []  # what lives until the interpreter ends


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def dial(*tubes: str) -> gstalk.Conn:
    conn = gstalk.dial(URI, **OPTIONS)
    kept.append(conn)
    for tube in tubes:
        conn.watch(tube)
    return conn


def produce(**options: Any) -> gstalk.Producer:
    kept.append(gstalk.Producer(URI, **OPTIONS, **options))
    producer: gstalk.Producer = kept[-1]
    return producer


# -- scripts that end without a word of farewell -----------------------------------------------------------------


def conn_puts() -> None:
    dial().put("exit", b"x")


def conn_idles() -> None:
    dial()


def conn_was_called_back() -> None:
    conn = dial("nothing")
    reserving = gevent.spawn(conn.reserve_with_timeout, 0.2)
    gevent.sleep(0.05)
    conn.put("exit", b"x")
    reserving.join()


def conn_holds_a_job() -> None:
    tube = f"exit-{os.getpid()}"
    conn = dial(tube)
    conn.put(tube, b"x")
    kept.append(conn.reserve())


def producer_puts() -> None:
    produce().put("exit", b"x")


def producer_idles() -> None:
    assert produce().wait_connected(10)


def producer_looks() -> None:
    """What it looks for has come: the answer of a put, which the loop has had no turn to read."""
    producer = produce()
    producer.put("exit", b"x")
    blocking_sleep(0.01)
    producer.put("exit", b"x")  # it looks, too, in the middle of the read that has wakened us, and still waits
    put = gevent.spawn(producer.put, "exit", b"x")
    gevent.sleep(0)
    blocking_sleep(0.1)
    assert producer.is_connected
    put.get()


def producer_looked() -> None:
    """It finds the last reply before the loop turns."""
    producer = produce()
    producer.put("exit", b"x")
    putting = gevent.spawn(producer.put, "exit", b"y")
    gevent.sleep(0)
    monkey.get_original("time", "sleep")(0.1)
    assert producer.is_connected
    putting.get()


def producer_without_server() -> None:
    produce(error_func=lambda error, message: None)
    gevent.sleep(0.1)


def producer_in_a_greenlet() -> None:
    gevent.spawn(producer_puts).join()


def consumer_received() -> None:
    consumer = gstalk.Consumer(URI, "nothing", **OPTIONS)
    kept.append(consumer)
    gevent.spawn_later(0.1, consumer.stop)
    consumer.receive(print)


def consumer_still_receives() -> None:
    consumer = gstalk.Consumer(URI, "nothing", **OPTIONS)
    kept.append(gevent.spawn(consumer.receive, print))
    assert consumer.wait_connected(10)


# -- programs that wait for whatever there is to wait for --------------------------------------------------------


def wait_beside(make: Callable[[], object]) -> None:
    for wait in (gevent.wait, gevent.get_hub().join):
        make()
        begin = monotonic()
        wait(timeout=20)
        say(monotonic() - begin)


def busy() -> None:
    """The wait goes on as long as there is something to do."""
    conn = dial("nothing")
    kept.append(gevent.spawn(conn.reserve_with_timeout, 0.6))


# -- Ctrl-C ------------------------------------------------------------------------------------------------------


def interrupted(call: Callable[[], Callable[[], object]]) -> None:
    function = call()
    gevent.spawn(say, "waits")  # which it can only do when the main greenlet does
    try:
        function()
    except KeyboardInterrupt:
        say(monotonic())


def reserve_called_back() -> Callable[[], object]:
    conn_was_called_back()
    return kept[-1].reserve


def reserve_holding() -> Callable[[], object]:
    conn_holds_a_job()
    return kept[0].reserve


def uncaught() -> None:
    conn = dial("nothing")
    gevent.spawn(say, "waits")
    conn.reserve()


# -- a Conn that is dropped --------------------------------------------------------------------------------------


def watch_it_go(kept_alive: list[gstalk.Conn]) -> None:
    """Drop a Conn that watches a tube of its own, and say how many watch that before and after."""
    seeing = dial()

    def watchers() -> int | None:
        try:
            return seeing.stats_tube("dropped").current_watching
        except gstalk.NotFoundError:
            return 0

    say(watchers())
    kept_alive.clear()
    gc.collect()
    end = monotonic() + 10
    while watchers() and monotonic() < end:
        gevent.sleep(0.01)
    say(watchers())
    seeing.close()


def watching() -> gstalk.Conn:
    conn = gstalk.dial(URI, **OPTIONS)
    conn.watch("dropped")
    return conn


def dropped() -> None:
    watch_it_go([watching()])


def of_an_ended_thread(destroys_its_hub: bool = True) -> list[gstalk.Conn]:
    box: list[gstalk.Conn] = []

    def run() -> None:
        hub = gevent.get_hub()
        box.append(watching())
        if destroys_its_hub:
            hub.destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return box


def thread_ended_then_forked() -> None:
    """Say how many of the main thread's connections know in a child that they are the parent's."""
    box = of_an_ended_thread()
    conns = [dial() for _ in range(20)]
    pid = os.fork()
    if not pid:
        closed = 0
        for conn in conns:
            try:
                conn.stats()
            except gstalk.ConnectionClosedError:
                closed += 1
            except gstalk.GstalkError:
                pass
        os._exit(closed)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    for conn in conns:
        conn.close()
    del box


def thread_ended() -> None:
    box = of_an_ended_thread()
    try:
        box[0].stats()
    except gstalk.WrongHubError as error:
        say(type(error).__name__)
    watch_it_go(box)


def thread_ended_beside_a_receive() -> None:
    """Say how many jobs the server still has reserved for it."""
    tube = f"exit-{os.getpid()}"
    conn = dial()
    conn.put(tube, b"x")

    def leave() -> None:
        jobs: list[gstalk.Job] = []

        def handle(job: gstalk.Job) -> None:
            jobs.append(job)
            gevent.sleep(1000)

        gevent.spawn(gstalk.Consumer(URI, tube).receive, handle)
        while not jobs:
            gevent.sleep(0.001)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    end = monotonic() + 10
    while (stats := conn.stats_tube(tube)).current_jobs_reserved and monotonic() < end:
        gevent.sleep(0.01)
    say([stats.current_jobs_reserved, stats.current_jobs_ready])
    if (job := conn.peek_ready(tube)) is not None:
        conn.delete(job)


def thread_ended_without_its_hub() -> None:
    watch_it_go(of_an_ended_thread(destroys_its_hub=False))


SCENARIOS: dict[str, Callable[[], object]] = {
    function.__name__: function
    for function in (
        conn_puts,
        conn_idles,
        conn_was_called_back,
        conn_holds_a_job,
        producer_puts,
        producer_idles,
        producer_looks,
        producer_looked,
        producer_without_server,
        producer_in_a_greenlet,
        consumer_received,
        consumer_still_receives,
    )
}
ENDS = tuple(SCENARIOS)
SCENARIOS |= {f"wait beside {name}": partial(wait_beside, SCENARIOS[name]) for name in ENDS} | {
    "wait beside busy": partial(wait_beside, busy),
    "interrupted reserve": partial(interrupted, lambda: dial("nothing").reserve),
    "interrupted reserve_with_timeout": partial(interrupted, lambda: partial(dial("nothing").reserve_with_timeout, 60)),
    "interrupted reserve_called_back": partial(interrupted, reserve_called_back),
    "interrupted reserve_holding": partial(interrupted, reserve_holding),
    "interrupted uncaught": uncaught,
    "dropped": dropped,
    "thread_ended": thread_ended,
    "thread_ended_beside_a_receive": thread_ended_beside_a_receive,
    "thread_ended_without_its_hub": thread_ended_without_its_hub,
    "thread_ended_then_forked": thread_ended_then_forked,
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
    if sys.argv[1] in ENDS:
        say(monotonic())
