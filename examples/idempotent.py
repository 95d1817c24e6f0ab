"""An idempotent handler: a job may run twice, its effect happens once.

What is done and that it is done are written in one transaction, under a key that the sender chose: a job's id won't do,
since a put that is tried again stores a second job with another id.

Run: python examples/idempotent.py [URI]
"""

from __future__ import annotations

import json
import sqlite3
import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        payment = json.dumps({"key": "invoice-17", "amount": 100}).encode()
        producer.put("payments", payment)
        producer.put("payments", payment)  # as if the first one's reply had been lost

    database = sqlite3.connect(":memory:")  # the database that holds the effect, whatever it is
    database.execute("CREATE TABLE account (balance INTEGER)")
    database.execute("INSERT INTO account VALUES (0)")
    database.execute("CREATE TABLE done (key TEXT PRIMARY KEY)")
    consumer = gstalk.Consumer(uri, "payments")
    jobs = []

    def handler(job: gstalk.Job) -> None:
        payment = json.loads(job.body)
        with database:  # a transaction: both statements or none
            if database.execute("INSERT OR IGNORE INTO done VALUES (?)", (payment["key"],)).rowcount:
                database.execute("UPDATE account SET balance = balance + ?", (payment["amount"],))
        job.delete()  # after the commit: if this is lost, the job runs again and changes nothing
        jobs.append(job.id)
        if len(jobs) == 2:
            consumer.stop()

    consumer.receive(handler)
    print(len(jobs), "jobs, balance", *database.execute("SELECT balance FROM account").fetchone())
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
