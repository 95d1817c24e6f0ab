"""Dead letters: a job whose attempts are used up is moved to another tube, together with the error.

The server doesn't know why a job failed; the letter says it. A crash between its put and the job's delete may leave the
job in both tubes, never in none; if the put fails, the job is buried.

Run: python examples/dead_letters.py [URI]
"""

from __future__ import annotations

import base64
import json
import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    producer = gstalk.Producer(uri)
    producer.put_many("orders", [b"3 apples", b"many apples", b"pears"])

    def give_up(job: gstalk.Job, exception: BaseException) -> None:
        letter = {"job_id": job.id, "failed": repr(exception), "body": base64.b64encode(job.body).decode()}
        producer.put("orders-dead", json.dumps(letter).encode(), ttr=600)
        job.delete()

    policy = gstalk.RetryPolicy(max_attempts=2, first_delay=0)
    config = gstalk.Config(retry=policy, given_up_func=give_up, error_func=lambda error, message: print(message))
    consumer = gstalk.Consumer(uri, "orders", config, num_greenlets=1)
    seen: list[int] = []

    def handler(job: gstalk.Job) -> None:
        seen.append(job.id)
        if len(seen) == 5:  # one order, and two that are tried twice
            consumer.stop()
        number, what = job.body.decode().split(" ")
        print("order of", int(number), what)
        job.delete()

    consumer.receive(handler)

    with producer, gstalk.dial(uri) as conn:  # a person looks at the letters, and decides
        conn.watch("orders-dead")
        while dead := conn.reserve_with_timeout(0):
            letter = json.loads(dead.body)
            body = base64.b64decode(letter["body"])
            print(f"job {letter['job_id']}: {body!r} failed with {letter['failed']}")
            if body == b"pears":
                print("put again as job", producer.put("orders", b"1 " + body))
            dead.delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
