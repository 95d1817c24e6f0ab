"""A rate limit: at most so many handlers a second; and a pause for all workers, when a service asks for one.

Run: python examples/rate_limit.py [URI]
"""

from __future__ import annotations

import sys
import time

import gevent

import gstalk

JOBS = 10


class Pace:
    """Turns, `rate` of them a second, shared by all greenlets of this process."""

    def __init__(self, rate: float) -> None:
        self._between = 1 / rate
        self._next = 0.0

    def wait(self) -> None:
        turn = self._next = max(time.monotonic(), self._next + self._between)
        gevent.sleep(turn - time.monotonic())


def main(uri: str = "localhost:11300") -> None:
    pace = Pace(20)
    done: list[float] = []
    with gstalk.Producer(uri) as producer, gstalk.dial(uri) as conn:
        producer.put_many("calls", (b"%d" % number for number in range(JOBS)))
        # Few greenlets: those that wait for their turn hold a job each. auto_touch keeps these.
        consumer = gstalk.Consumer(uri, "calls", num_greenlets=3, auto_touch=True)

        def handler(job: gstalk.Job) -> None:
            pace.wait()
            if job.body == b"5" and job.stats().releases == 0:  # the service says: 429, come back in a second
                conn.pause_tube("calls", 1)  # no process gets a job of this tube until then
                job.release()
                return
            done.append(time.monotonic())
            job.delete()
            if len(done) == JOBS:
                consumer.stop()

        consumer.receive(handler)
    print(f"{JOBS} calls in {done[-1] - done[0]:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
