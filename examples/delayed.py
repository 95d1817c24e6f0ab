"""Delayed jobs: for later, for a date, made ready sooner, or cancelled.

A date needs its time zone: without one it would mean another moment on another machine.

Run: python examples/delayed.py [URI]
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import gstalk


def until(moment: datetime) -> timedelta:
    """The delay until then, by this machine's clock; none if it has passed."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment} has no zone, so nobody knows when it is")
    return max(moment - datetime.now(timezone.utc), timedelta())


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:
        conn.watch("reminders")
        in_a_moment = conn.put("reminders", b"tea is ready", delay=0.5)  # the server counts whole seconds: 1
        tomorrow = conn.put("reminders", b"call back", delay=timedelta(days=1))
        next_week = conn.put("reminders", b"send flowers", delay=until(datetime.now(timezone.utc) + timedelta(weeks=1)))
        long_ago = conn.put("reminders", b"happy 2000", delay=until(datetime(2000, 1, 1, tzinfo=timezone.utc)))

        for job_id in (long_ago, in_a_moment):
            job = conn.reserve()  # waits for the next
            assert job.id == job_id
            print(job.body.decode())
            job.delete()

        conn.kick_job(tomorrow)  # now, after all
        job = conn.reserve()
        print(job.body.decode())
        job.delete()

        print("due in", timedelta(seconds=conn.stats_job(next_week).time_left or 0))
        conn.delete(next_week)  # called off: its id is all that is needed


if __name__ == "__main__":
    main(*sys.argv[1:])
