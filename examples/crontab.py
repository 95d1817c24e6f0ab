"""A crontab: a job for each line, which each run releases until the line's next minute, in UTC.

Run: python examples/crontab.py [URI]
"""

import sys
from datetime import datetime, timedelta, timezone

import gstalk

LINES = {"cron-figures": "*/5 * * * *", "cron-backup": "30 3 * * 1-5", "cron-bills": "0 9 1 1,4,7,10 *"}


def matches(field: str, value: int, first: int = 0) -> bool:
    """Whether a field (`*`, `5`, `1-5`, `*/15`, `0,30`) has this value; `first` is the smallest that there is."""
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.replace("*", f"{first}-99").partition("-")
        if int(low) <= value <= int(high or low) and (value - int(low)) % int(step or 1) == 0:
            return True
    return False


def next_run(line: str, now: datetime) -> datetime:
    minute, hour, day, month, weekday = line.split()
    both = all if "*" in (day[0], weekday[0]) else any  # as cron does: where both are named, either will do
    when = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while True:
        days = matches(day, when.day, 1), matches(weekday, when.isoweekday() % 7) or matches(weekday, when.isoweekday())
        if not (matches(month, when.month, 1) and both(days)):
            when = when.replace(hour=0, minute=0) + timedelta(days=1)
        elif not matches(hour, when.hour):
            when = when.replace(minute=0) + timedelta(hours=1)
        elif not matches(minute, when.minute):
            when += timedelta(minutes=1)
        else:
            return when


def until_next(tube: str | None) -> timedelta:
    return next_run(LINES[str(tube)], now := datetime.now(timezone.utc)) - now


def main(uri: str = "localhost:11300") -> None:
    def run(job: gstalk.Job) -> None:
        job.release(delay=until_next(job.tube))
        consumer.stop()

    with gstalk.dial(uri) as conn:  # what sets up the system does this, once
        for tube in LINES:
            conn.put(tube, b"", delay=until_next(tube))
        conn.kick("cron-backup", 1)  # a person who can't wait
        consumer = gstalk.Consumer(uri, LINES, retry=gstalk.RetryPolicy(max_attempts=None))
        consumer.receive(dict.fromkeys(LINES, run))
        print({tube: conn.stats_tube(tube).current_jobs_delayed for tube in LINES})


if __name__ == "__main__":
    main(*sys.argv[1:])
