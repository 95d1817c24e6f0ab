"""A Consumer whose handlers run in many greenlets: 50 jobs of a tenth of a second each, in about as long as one.

Run: python examples/many_greenlets.py [URI]
"""

from __future__ import annotations

import sys
import time

import gevent

import gstalk

JOBS = 50


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put_many("many-greenlets", (b"job %d" % number for number in range(JOBS)))

    consumer = gstalk.Consumer(uri, "many-greenlets", multiply=2, num_greenlets=JOBS, auto_delete=True)
    done = []

    def handler(job: gstalk.Job) -> None:
        gevent.sleep(0.1)  # a query, a request, ...
        done.append(job.body)
        if len(done) == JOBS:
            consumer.stop()

    began = time.monotonic()
    consumer.receive(handler)
    print(f"{len(done)} jobs in {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
