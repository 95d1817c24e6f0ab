"""A limit for each tube: a Consumer for each, in one process, with as many greenlets as may run at once.

One Consumer of two tubes would let slow reports take all its greenlets, and mail would wait for them.

Run: python examples/limit_per_tube.py [URI]
"""

from __future__ import annotations

import sys

import gevent
from gevent.event import Event

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put_many("reports", [b"a slow report"] * 6)
        producer.put_many("mail", [b"to somebody"] * 10)
    running = {"reports": 0, "mail": 0}
    most = dict(running)
    left = 16
    all_there = Event()

    def handler(job: gstalk.Job) -> None:
        nonlocal left
        tube = str(job.tube)
        running[tube] += 1
        most[tube] = max(most[tube], running[tube])
        if running == {"reports": 2, "mail": 10}:
            all_there.set()
        all_there.wait()  # for this example's sake: nothing ends before both are at their limits
        running[tube] -= 1
        job.delete()
        left -= 1
        if not left:
            stop()

    def stop() -> None:  # also what SIGTERM calls in real life
        for consumer in consumers:
            consumer.stop()

    consumers = [gstalk.Consumer(uri, "reports", num_greenlets=2), gstalk.Consumer(uri, "mail", num_greenlets=20)]
    receiving = [gevent.spawn(consumer.receive, handler) for consumer in consumers]
    gevent.joinall(receiving, raise_error=True)
    print("most at once:", most)


if __name__ == "__main__":
    main(*sys.argv[1:])
