"""Batches: many jobs are done at once, when there are enough of them, or when the first has waited long enough.

Each handler adds its job, and waits; if the batch fails, all its jobs have failed, and are tried again.

Run: python examples/batches.py [URI]
"""

import sys
from collections.abc import Callable

import gevent
from gevent.event import Event

import gstalk


class Batches:
    def __init__(self, work: Callable[[list[gstalk.Job]], None], size: int, seconds: float) -> None:
        self._work, self._size, self._seconds = work, size, seconds
        self._begin()

    def _begin(self) -> None:
        self._jobs, self._full = list[gstalk.Job](), Event()

    def handle(self, job: gstalk.Job) -> None:
        if not self._jobs:
            self._working = gevent.spawn(self._run, self._jobs, self._full)
        self._jobs.append(job)
        working = self._working
        if len(self._jobs) == self._size:
            self._full.set()
            self._begin()
        working.get()  # raises what the work has raised
        job.delete()  # all of the batch at once, in one write

    def _run(self, jobs: list[gstalk.Job], full: Event) -> None:
        if not full.wait(self._seconds):
            self._begin()
        self._work(jobs)


def main(uri: str = "localhost:11300") -> None:
    sizes: list[int] = []

    with gstalk.dial(uri) as conn:
        conn.put_many("rows", [b"a row"] * 25)

    def insert(jobs: list[gstalk.Job]) -> None:  # into a database, in one statement
        sizes.append(len(jobs))
        if sum(sizes) == 25:
            consumer.stop()

    consumer = gstalk.Consumer(uri, "rows", num_greenlets=20)
    consumer.receive(Batches(insert, 10, 0.2).handle)
    print("rows inserted at once:", *sizes)


if __name__ == "__main__":
    main(*sys.argv[1:])
