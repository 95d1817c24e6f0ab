"""Unique jobs: a job that waits already isn't put again. beanstalkd doesn't compare jobs, so a database decides.

The mark is set before the put, and removed before the work: a change that comes during the work makes a new job.

Run: python examples/unique_jobs.py [URI]
"""

from __future__ import annotations

import sqlite3
import sys
import time

import gstalk

OLDEST = 3600  # seconds; longer than a job ever waits
MARK = """
    INSERT INTO waiting VALUES (:key, :now)
    ON CONFLICT (key) DO UPDATE SET since = :now WHERE since < :now - :oldest
"""


def put_once(database: sqlite3.Connection, producer: gstalk.Producer, key: str) -> int | None:
    with database:
        if not database.execute(MARK, {"key": key, "now": time.time(), "oldest": OLDEST}).rowcount:
            return None
    try:
        return producer.put("index", key.encode())
    except gstalk.GstalkError as error:
        if getattr(error, "sent", "maybe") == "no":  # else it may be there, and its run removes the mark
            unmark(database, key)
        raise


def unmark(database: sqlite3.Connection, key: str) -> None:
    with database:
        database.execute("DELETE FROM waiting WHERE key = ?", (key,))


def main(uri: str = "localhost:11300") -> None:
    database = sqlite3.connect(":memory:")  # one that all who put and all who work have in common
    database.execute("CREATE TABLE waiting (key TEXT PRIMARY KEY, since REAL)")
    with gstalk.Producer(uri) as producer:
        consumer = gstalk.Consumer(uri, "index")
        print("put:", [put_once(database, producer, key) for key in ("page 1", "page 1", "page 2", "page 1")])

        def handler(job: gstalk.Job) -> None:
            unmark(database, job.body.decode())
            job.delete()
            if job.body == b"page 2":
                consumer.stop()

        consumer.receive(handler)
        print("put again:", put_once(database, producer, "page 1"))
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
