"""Delayed jobs: for later, brought forward, or called off.

Run: python examples/delayed.py [URI]
"""

from __future__ import annotations

import sys
from datetime import timedelta

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:
        conn.watch("reminders")
        in_a_moment = conn.put("reminders", b"tea is ready", delay=0.5)  # the server counts whole seconds: 1
        tomorrow = conn.put("reminders", b"call back", delay=timedelta(days=1))
        next_week = conn.put("reminders", b"send flowers", delay=timedelta(weeks=1))

        job = conn.reserve()  # waits for the first
        assert job.id == in_a_moment
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
