"""A job that repeats, like cron's: it is put once, and each run releases it until the next one is due.

With any number of workers, one of them has it; if that one dies, another gets it. A run that raises is tried again,
sooner, as the RetryPolicy says; it counts all runs that there ever were, so it must not give up.

Run: python examples/repeat.py [URI]
"""

from __future__ import annotations

import math
import sys
import time

import gstalk

EVERY = 1  # seconds; 86400 for once a day, counted from midnight UTC


def until_next() -> int:
    """Seconds to the next whole multiple of the period, so that runs don't drift."""
    return EVERY - math.floor(time.time()) % EVERY


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:  # what sets up the system puts it, if it isn't there yet
        conn.use("every-second")  # now there is such a tube
        tube = conn.stats_tube("every-second")
        if not (tube.current_jobs_ready or tube.current_jobs_delayed or tube.current_jobs_reserved):
            conn.put("every-second", b"rotate the logs", delay=until_next())

    consumer = gstalk.Consumer(
        uri,
        "every-second",
        retry=gstalk.RetryPolicy(max_attempts=None, max_delay=EVERY),
        error_func=lambda error, message: print("failed:", error),
    )
    runs = []

    def handler(job: gstalk.Job) -> None:
        runs.append(time.time())
        if len(runs) == 1:
            raise OSError("no space left")  # an error of this run, not of the job
        if len(runs) < 3:
            job.release(delay=until_next())
        else:  # in real life it never ends
            job.delete()
            consumer.stop()

    consumer.receive(handler)
    print("ran", len(runs), "times")


if __name__ == "__main__":
    main(*sys.argv[1:])
