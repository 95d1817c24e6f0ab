"""A monkey-patched program: its blocking code, threads included, runs as greenlets and shares one Producer.

Run: python examples/patched.py [URI]
"""

# ruff: noqa: E402  # patching comes before the imports

from __future__ import annotations

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gstalk

JOBS = 20


def main(uri: str = "localhost:11300") -> None:
    began = time.monotonic()
    with gstalk.Producer(uri) as producer, ThreadPoolExecutor(JOBS) as threads:
        for number in range(JOBS):
            threads.submit(producer.put, "patched", b"job %d" % number)

    consumer = gstalk.Consumer(uri, "patched", num_greenlets=JOBS, auto_delete=True)
    lock = threading.Lock()
    done = []

    def handler(job: gstalk.Job) -> None:
        time.sleep(0.1)  # as any blocking call would: requests, a database driver in Python, ...
        with lock:
            done.append(job.body)
        if len(done) == JOBS:
            consumer.stop()

    receiving = threading.Thread(target=consumer.receive, args=(handler,))
    receiving.start()
    receiving.join()
    print(f"{len(done)} jobs of 0.1 s, in {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
