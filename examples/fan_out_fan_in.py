"""Fan out and fan in: a job is split into parts that many workers share, and their results are gathered in a tube.

A part may run twice, so results are gathered by the part's number: a second one changes nothing.

Run: python examples/fan_out_fan_in.py [URI]
"""

from __future__ import annotations

import json
import sys

import gevent

import gstalk

PARTS = 10


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer, gstalk.dial(uri) as conn:
        consumer = gstalk.Consumer(uri, "parts")

        def work(job: gstalk.Job) -> None:
            part = json.loads(job.body)
            result = {"part": part["part"], "square": part["number"] ** 2}
            producer.put(part["answer to"], json.dumps(result).encode())
            job.delete()

        workers = gevent.spawn(consumer.receive, work)  # in other processes, on other machines, ...

        answers = (
            "sum-4711"  # a tube for this sum alone: it is there while somebody uses or watches it, or it holds jobs
        )
        conn.watch(answers)
        parts = [{"part": number, "number": number, "answer to": answers} for number in range(PARTS)]
        producer.put_many("parts", (json.dumps(part).encode() for part in parts))

        squares: dict[int, int] = {}
        while len(squares) < PARTS:
            job = conn.reserve()
            result = json.loads(job.body)
            squares[result["part"]] = result["square"]
            job.delete()
        print("sum of squares:", sum(squares.values()))

        consumer.stop()
        workers.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
