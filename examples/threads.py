"""Threads, unpatched: each has a hub of its own, so each dials a connection of its own.

A thread that waits doesn't hold up the others. One that uses another's connection is told so, and sends nothing.

Run: python examples/threads.py [URI]
"""

from __future__ import annotations

import queue
import sys
import threading

import gstalk

JOBS = 20


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:
        conn.put_many("threads", [b"job %d" % number for number in range(JOBS)])
        refused: queue.Queue[gstalk.WrongHubError] = queue.Queue()
        done: queue.Queue[bytes] = queue.Queue()

        def share() -> None:
            try:
                conn.stats()
            except gstalk.WrongHubError as error:
                refused.put(error)

        def work() -> None:
            with gstalk.dial(uri) as own:
                own.watch("threads")
                while job := own.reserve_with_timeout(0):
                    done.put(job.body)
                    job.delete()

        threads = [threading.Thread(target=target) for target in (share, work, work, work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(refused.get())
        print(done.qsize(), "jobs done")


if __name__ == "__main__":
    main(*sys.argv[1:])
