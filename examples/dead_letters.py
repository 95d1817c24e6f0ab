"""Dead letters: jobs that failed too often are buried; a person looks at each, and kicks or deletes it.

The server doesn't keep why a job failed, so the Consumer's `error_func` does.

Run: python examples/dead_letters.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put_many("orders", [b"3 apples", b"many apples", b"pears"])

    reasons: list[str] = []  # a log that can be searched for "job 2", in real life
    consumer = gstalk.Consumer(
        uri,
        "orders",
        retry=gstalk.RetryPolicy(max_attempts=1),
        error_func=lambda error, message: reasons.append(f"{message}: {error}"),
    )
    seen: list[int] = []

    def handler(job: gstalk.Job) -> None:
        seen.append(job.id)
        if len(seen) == 3:
            consumer.stop()
        number, _, what = job.body.partition(b" ")
        if not what:
            raise gstalk.Bury()  # no use in another attempt, whatever the policy says
        print("order of", int(number), what.decode())
        job.delete()

    consumer.receive(handler)

    with gstalk.dial(uri) as conn:
        while job := conn.peek_buried("orders"):
            stats = job.stats()
            print(f"job {job.id}: {job.body!r}, {stats.age} s old, attempts {stats.reserves}, kicks {stats.kicks}")
            print(*[reason for reason in reasons if f"job {job.id} " in reason] or ["no error told"])
            if job.body == b"many apples":
                conn.delete(job)
            else:
                job.kick()  # another attempt, by whoever consumes next; `gstalk kick --tube orders` kicks all
        conn.watch("orders")
        conn.reserve().delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
