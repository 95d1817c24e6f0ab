"""An outbox: a job is put if, and only if, the database transaction was committed.

The job is written to a table in the same transaction; a relay puts what it finds there, and removes what the server has
acknowledged. If the relay dies between these two, the job is put twice, never lost: see idempotent.py.

Run: python examples/outbox.py [URI]
"""

from __future__ import annotations

import sqlite3
import sys

import gstalk


def order(database: sqlite3.Connection, what: str) -> None:
    """What a request does: it needs no beanstalkd, and waits for none."""
    with database:
        database.execute("INSERT INTO orders (what) VALUES (?)", (what,))
        database.execute("INSERT INTO outbox (tube, body) VALUES ('shipping', ?)", (what.encode(),))
        if what == "nothing":
            raise ValueError("nobody orders nothing")  # the transaction is rolled back, the job with it


def relay(database: sqlite3.Connection, producer: gstalk.Producer) -> int:
    """Put what is in the outbox, in its order; run it every second, and after each commit if you like."""
    rows = database.execute("SELECT id, tube, body FROM outbox ORDER BY id LIMIT 1000").fetchall()
    for row, tube, body in rows:
        producer.put(tube, body)  # raises while no server takes it; the row stays
        with database:
            database.execute("DELETE FROM outbox WHERE id = ?", (row,))
    return len(rows)


def main(uri: str = "localhost:11300") -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT)")
    database.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY, tube TEXT, body BLOB)")
    for what in ("apples", "nothing", "pears"):
        try:
            order(database, what)
        except ValueError as error:
            print("refused:", error)
    with gstalk.Producer(uri) as producer:
        print("put", relay(database, producer), "jobs, then", relay(database, producer))
    with gstalk.dial(uri) as conn:
        conn.watch("shipping")
        while job := conn.reserve_with_timeout(0):
            print("ship", job.body.decode())
            job.delete()
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
