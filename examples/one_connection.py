"""Conn alone: one connection, shared by greenlets that put and greenlets that reserve.

Run: python examples/one_connection.py [URI]
"""

from __future__ import annotations

import sys

import gevent

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:
        conn.watch("one-connection")
        conn.ignore("default")

        def work() -> bytes:
            job = conn.reserve()
            job.delete()
            return job.body

        workers = [gevent.spawn(work) for _ in range(5)]
        for number in range(5):
            gevent.spawn(conn.put, "one-connection", b"job %d" % number)
        print(sorted(worker.get() for worker in workers))

        # A call that takes too long may be given up; the connection stays as it was.
        print(gevent.with_timeout(0.1, conn.reserve, timeout_value="nothing yet"))
        print(conn.reserve_with_timeout(0.2), conn.stats_tube("one-connection").current_jobs_ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
