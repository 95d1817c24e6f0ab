"""Programs of many threads that put with one Producer: `threaded SCENARIO URI [NUMBER]`."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep

import gevent
from gevent.hub import Hub
from gevent.threadpool import ThreadPool

import gstalk

# Python 3.12 and later may say so at each fork, and to fork beside threads is what is tried here.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

URI = sys.argv[2]
NUMBER = int(sys.argv[3]) if len(sys.argv) > 3 else 0


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def left() -> dict[str, int]:
    """What the process has open and in memory, when gevent's own threads have ended, too: nobody waits for them."""
    for _ in range(100):
        gc.collect()
        hubs = sum(isinstance(each, Hub) for each in gc.get_objects())
        if hubs == 1 and len(os.listdir("/proc/self/task")) == threading.active_count():  # who is joined may still end
            break
        sleep(0.02)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "hubs": sum(isinstance(each, Hub) for each in gc.get_objects()),
        "greenlets": sum(isinstance(each, gevent.Greenlet) for each in gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
    }


def short_lived() -> None:
    """Thousands of threads that put once and end: what the first hundred have left, and all of them."""
    producer = gstalk.Producer(URI)
    took = []

    def put() -> None:
        began = perf_counter()
        producer.put("short", b"x")
        took.append(perf_counter() - began)

    for _ in range(100):
        in_thread(put)
    took.clear()
    before = left()
    times = []
    for _ in range(NUMBER):
        in_thread(put)
        times.append(took.pop())
    times.sort()
    say({"before": before, "after": left(), "median ms": times[len(times) // 2] * 1000})
    producer.stop()


def many_at_once() -> None:
    """So many threads that have put and wait; then they end, and so does what they had."""
    producer = gstalk.Producer(URI)
    in_thread(lambda: producer.put("t", b"x"))
    before = left()
    ready = threading.Barrier(NUMBER + 1)

    def put() -> None:
        producer.put("t", b"x")
        ready.wait()
        ready.wait()

    threads = [threading.Thread(target=put) for _ in range(NUMBER)]
    for thread in threads:
        thread.start()
    ready.wait()
    during = sum(isinstance(each, Hub) for each in gc.get_objects())
    ready.wait()
    for thread in threads:
        thread.join()
    threads.clear()
    say({"before": before, "hubs": during, "after": left()})
    producer.stop()


def gevents_pools() -> None:
    """Pools of gevent's threads, which destroy their hubs themselves, but not what waits there."""
    producer = gstalk.Producer(URI)

    def put() -> None:
        pool = ThreadPool(2)
        pool.map(lambda number: producer.put("t", b"%d" % number), range(4))
        pool.kill()

    put()
    before = left()
    for _ in range(NUMBER):
        put()
    say({"before": before, "after": left()})
    producer.stop()


def forks() -> None:
    """Forks while threads put: each process goes on with what is its own."""
    producer = gstalk.Producer(URI)
    over = threading.Event()
    put = [0] * 4

    def keep_putting(number: int) -> None:
        while not over.is_set():
            producer.put("parent", b"%d-%d" % (number, put[number]))
            put[number] += 1

    def fork() -> None:
        producer.put("forker", b"x")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                gevent.reinit()
                producer.put("child", b"forker")
                in_thread(lambda: producer.put("child", b"thread"))
                producer.stop()
                code = 0
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        producer.put("forker", b"y")

    codes: list[int] = []
    threads = [threading.Thread(target=keep_putting, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(NUMBER):
        in_thread(fork)
    fork()
    over.set()
    for thread in threads:
        thread.join()
    producer.stop()
    say({"codes": codes, "put": put})


def ends() -> None:
    """The process ends while threads that have put wait, some of them for ever; nobody calls `stop`."""
    producer = gstalk.Producer(URI)
    executor = ThreadPoolExecutor(2)
    say(len({executor.submit(producer.put, "t", b"x").result() for _ in range(4)}))
    ready = threading.Event()

    def put_and_wait() -> None:
        producer.put("t", b"x")
        ready.set()
        threading.Event().wait()

    threading.Thread(target=put_and_wait, daemon=True).start()
    ready.wait()


SCENARIOS = {function.__name__: function for function in (short_lived, many_at_once, gevents_pools, forks, ends)}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
