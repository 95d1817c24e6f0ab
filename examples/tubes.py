"""A handler for each tube: one Consumer, one pool of greenlets, several kinds of work.

Run: python examples/tubes.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put("mail", b"to somebody")
        producer.put("thumbnails", b"cat.jpg")
        producer.put("mail", b"to nobody")

    # The job's tube is asked for where several are watched; that is one more command a job.
    consumer = gstalk.Consumer(uri, ["mail", "thumbnails"], auto_delete=True)
    done: list[str] = []

    def finish(what: str) -> None:
        done.append(what)
        if len(done) == 3:
            consumer.stop()

    def send(job: gstalk.Job) -> None:
        finish(f"sent mail {job.body.decode()}")

    def shrink(job: gstalk.Job) -> None:
        finish(f"shrank {job.body.decode()}")

    consumer.receive({"mail": send, "thumbnails": shrink})
    print(sorted(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
