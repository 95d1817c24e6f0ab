"""Priorities: the smaller the number, the sooner a job is reserved; among equals, the one that was put first.

Run: python examples/priorities.py [URI]
"""

from __future__ import annotations

import sys

import gstalk

URGENT, NORMAL, IDLE = 100, 1024, 100_000  # below 1024 the server counts a job as urgent in its statistics


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put("priorities", b"clean up", priority=IDLE)
        producer.put("priorities", b"first order")
        producer.put("priorities", b"second order", priority=NORMAL)
        producer.put("priorities", b"alarm", priority=URGENT)

    # One handler at a time, so that the order shows. With more, jobs begin in this order.
    consumer = gstalk.Consumer(uri, "priorities", num_greenlets=1)
    seen = []

    def handler(job: gstalk.Job) -> None:
        if job.body == b"first order" and job.body not in seen:
            job.release(priority=IDLE - 1)  # it can wait; without an argument it would keep its priority
        else:
            job.delete()
        seen.append(job.body)
        if len(seen) == 5:
            consumer.stop()

    consumer.receive(handler)
    print(seen)


if __name__ == "__main__":
    main(*sys.argv[1:])
