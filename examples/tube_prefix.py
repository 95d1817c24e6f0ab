"""One server for several environments: each has a prefix for the names of its tubes.

A prefix prevents mistakes; it protects nothing, since everybody who can connect reaches all tubes.

Run: python examples/tube_prefix.py [URI]
"""

from __future__ import annotations

import os
import sys

import gstalk

PREFIX = os.environ.get("TUBE_PREFIX", "staging-")


def tube(name: str) -> str:
    """The one place that knows of the prefix: every tube's name comes through here, in puts and in Consumers."""
    return PREFIX + name


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put("production-mail", b"to a customer")
        producer.put(tube("mail"), b"to a colleague")
        producer.put(tube("thumbnails"), b"cat.jpg")
    consumer = gstalk.Consumer(uri, map(tube, ["mail", "thumbnails"]), num_greenlets=1)
    done: list[bytes] = []

    def handler(job: gstalk.Job) -> None:
        done.append(job.body)
        job.delete()
        if len(done) == 2:
            consumer.stop()

    consumer.receive(handler)
    with gstalk.dial(uri) as conn:
        left = {name: conn.stats_tube(name).current_jobs_ready for name in conn.list_tubes() if name != "default"}
    print("done:", sorted(done))
    print("left for others:", left)


if __name__ == "__main__":
    main(*sys.argv[1:])
