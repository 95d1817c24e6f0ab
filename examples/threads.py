"""Threads, unpatched: they share a Producer, and each that reserves dials a connection of its own.

The Producer has connections for each thread, which end with it. A thread that waits doesn't hold up the others. If one
uses another's connection, it gets a WrongHubError, and nothing is sent.

Run: python examples/threads.py [URI]
"""

from __future__ import annotations

import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gstalk

JOBS = 20


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer, ThreadPoolExecutor(4) as executor:
        ids = list(executor.map(lambda number: producer.put("threads", b"job %d" % number), range(JOBS)))
        print(len(set(ids)), "jobs put")

    with gstalk.dial(uri) as conn:
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
