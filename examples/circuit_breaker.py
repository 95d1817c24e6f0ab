"""A circuit breaker: while a service is down, the tube that needs it is paused, for all workers.

When the pause is over, the first failure begins the next one, and the first success closes the breaker.

Run: python examples/circuit_breaker.py [URI]
"""

import sys
from collections.abc import Callable

import gstalk


class DownError(Exception):
    """What the service's client raises; not one of gstalk's, which tell of the queue."""


class Breaker:
    def __init__(self, work: Callable[[gstalk.Job], None], tube: str, failures: int, pause: int) -> None:
        self._work, self._tube = work, tube
        self._failures, self._pause, self._in_a_row = failures, pause, 0

    def handle(self, job: gstalk.Job) -> None:
        try:
            self._work(job)
        except DownError as error:  # an error of the job's own passes
            self._in_a_row += 1
            if self._in_a_row < self._failures:
                raise
            print("open:", error)
            with gstalk.dial(job.uri) as conn:  # each server has a pause of its own
                conn.pause_tube(self._tube, self._pause)
            job.release()
        else:
            self._in_a_row = 0


def main(uri: str = "localhost:11300") -> None:
    answers = iter(["no answer"] * 2 + ["well"] * 5)  # the service is away, and comes back
    done: list[int] = []

    def call(job: gstalk.Job) -> None:
        if (answer := next(answers)) != "well":
            raise DownError(answer)
        job.delete()
        done.append(job.id)
        if len(done) == 5:
            consumer.stop()

    with gstalk.Producer(uri) as producer:
        producer.put_many("calls", [b"hello"] * 5)
    consumer = gstalk.Consumer(uri, "calls", num_greenlets=1, error_func=lambda error, message: print("failed:", error))
    consumer.receive(Breaker(call, "calls", failures=2, pause=1).handle)
    print(len(done), "calls done")


if __name__ == "__main__":
    main(*sys.argv[1:])
