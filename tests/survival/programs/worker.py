"""A worker process: ``worker.py HANDLER URI TUBE [OPTION=VALUE ...]``. Bodies tell the handlers what to do.

It ends at SIGTERM, after a graceful stop. What happens is printed as JSON, one value a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import gevent

import gstalk

HANDLER, URI, TUBE = sys.argv[1:4]
OPTIONS: dict[str, Any] = {name: json.loads(value) for name, _, value in (arg.partition("=") for arg in sys.argv[4:])}
retry = gstalk.RetryPolicy(max_attempts=OPTIONS.pop("max_attempts", 3), first_delay=0)
consumer = gstalk.Consumer(
    URI,
    TUBE,
    retry=retry,
    error_func=lambda error, message: say([type(error).__name__, message]),
    info_func=lambda message: None,
    **OPTIONS,
)


def say(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")  # in one piece, and not from within a buffer that a signal may hit


def deadly(job: gstalk.Job) -> None:
    """A job that kills the process, or one that doesn't."""
    if job.body == b"die":
        os._exit(9)
    gevent.sleep(0.01)  # beside it, others are in flight
    job.delete()


def repeating(job: gstalk.Job) -> None:
    """A job that repeats by its release, and takes the process along after every third time."""
    stats = job.stats()
    job.release()
    if (stats.releases or 0) % 3 == 2:
        os._exit(9)


def computing(job: gstalk.Job) -> None:
    """One that waits for nothing."""
    say("computes")
    number = 0
    while True:
        number += 1


def quick(job: gstalk.Job) -> None:
    """Some wait, some don't."""
    if job.id % 3 == 0:
        gevent.sleep(job.id % 7 / 1000)
    job.delete()


def reserved() -> tuple[int | None, int | None]:
    with gstalk.dial(URI) as conn:
        stats = conn.stats()
        return stats.current_jobs_reserved, stats.current_waiting


signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
try:
    say("begins")
    consumer.receive(globals()[HANDLER])
except KeyboardInterrupt:
    say(["KeyboardInterrupt", *reserved()])
else:
    say(["returned", *reserved()])
