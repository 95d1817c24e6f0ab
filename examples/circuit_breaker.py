"""A circuit breaker: while a service is down, the tube that needs it is paused, for all workers.

When the pause is over, the first failure begins the next one, and the first success closes the breaker.

Run: python examples/circuit_breaker.py [URI]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import gstalk


class Breaker:
    def __init__(
        self, work: Callable[[gstalk.Job], None], uris: list[str], tube: str, failures: int, pause: int
    ) -> None:
        self._work, self._uris, self._tube = work, uris, tube
        self._failures, self._pause, self._in_a_row = failures, pause, 0

    def handle(self, job: gstalk.Job) -> None:
        try:
            self._work(job)
        except ConnectionError as error:  # the service's; an error of the job's own passes
            self._in_a_row += 1
            if self._in_a_row < self._failures:
                raise
            print("open:", error)
            for uri in self._uris:  # each server has a pause of its own
                with gstalk.dial(uri) as conn:
                    conn.pause_tube(self._tube, self._pause)
            job.release()
        else:
            self._in_a_row = 0


def main(uri: str = "localhost:11300") -> None:
    answers = iter(["no answer"] * 2 + ["well"] * 5)  # the service is away, and comes back
    done: list[int] = []

    def call(job: gstalk.Job) -> None:
        if (answer := next(answers)) != "well":
            raise ConnectionError(answer)
        job.delete()
        done.append(job.id)
        if len(done) == 5:
            consumer.stop()

    with gstalk.Producer(uri) as producer:
        producer.put_many("calls", [b"hello"] * 5)
    consumer = gstalk.Consumer(uri, "calls", num_greenlets=1, error_func=lambda error, message: print("failed:", error))
    consumer.receive(Breaker(call, [uri], "calls", failures=2, pause=1).handle)
    print(len(done), "calls done")


if __name__ == "__main__":
    main(*sys.argv[1:])
