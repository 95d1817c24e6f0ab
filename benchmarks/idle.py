"""What counts when little is going on: python -m benchmarks.idle WHAT URI.

latency   from a put to the handler of an idle Consumer, beside the round trip of the put
shared    the same while other handlers of the same connection hold jobs
quiet     what an idle Consumer says to the server in ten seconds, and the CPU time that it uses
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gevent
import gevent.event

import gstalk
from benchmarks.meter import percentiles
from gstalk.protocol.pauses import LONGEST_PAUSE

JOBS = 500
PAUSE = 0.003
QUIET = 10.0


def latency(uri: str) -> dict[str, Any]:
    times: list[float] = []
    trips: list[float] = []
    with gstalk.dial(uri) as conn:
        consumer = gstalk.Consumer(uri, "idle", auto_delete=True)
        running = gevent.spawn(consumer.receive, lambda job: times.append(time.perf_counter() - float(job.body)))
        consumer.wait_connected()
        for _ in range(JOBS):
            gevent.sleep(PAUSE)
            began = time.perf_counter()
            conn.put("idle", b"%.9f" % began)
            trips.append(time.perf_counter() - began)
        gevent.sleep(0.1)
        consumer.stop()
        running.join()
    assert len(times) == JOBS
    return {"handler": percentiles(times), "trip": percentiles(trips)}


def shared(uri: str) -> dict[str, Any]:
    times: list[float] = []
    held = gevent.event.Event()
    with gstalk.dial(uri) as conn:
        consumer = gstalk.Consumer(uri, "shared", num_greenlets=4)

        def handler(job: gstalk.Job) -> None:
            if job.body == b"long":
                held.wait()
            else:
                times.append(time.perf_counter() - float(job.body))
            job.delete()

        running = gevent.spawn(consumer.receive, handler)
        consumer.wait_connected()
        conn.put_many("shared", [b"long"] * 2)
        gevent.sleep(10 * LONGEST_PAUSE)  # until it asks as seldom as it ever does
        for number in range(100):
            conn.put("shared", b"%.9f" % time.perf_counter())
            gevent.sleep(2 * LONGEST_PAUSE + 0.01 + number % 10 * 0.005)  # that seldom again
        held.set()
        consumer.stop()
        running.join()
    return {**percentiles(times), "most": max(times) * 1000, "jobs": len(times)}


def quiet(uri: str) -> dict[str, Any]:
    with gstalk.dial(uri) as conn:
        consumer = gstalk.Consumer(uri, "quiet")
        running = gevent.spawn(consumer.receive, lambda job: job.delete())
        consumer.wait_connected()
        gevent.sleep(0.5)
        before, cpu = conn.stats(), time.process_time()
        gevent.sleep(QUIET)
        cpu, after = time.process_time() - cpu, conn.stats()
        consumer.stop()
        running.join()
    own = 1  # the second `stats`
    names = [name for name in vars(before) if name.startswith("cmd_")]
    said = sum((getattr(after, name) or 0) - (getattr(before, name) or 0) for name in names) - own
    return {"commands": said, "cpu": cpu, "seconds": QUIET}


if __name__ == "__main__":
    print(json.dumps({"latency": latency, "shared": shared, "quiet": quiet}[sys.argv[1]](sys.argv[2])))
