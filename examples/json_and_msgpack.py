"""Messages instead of bytes: a decorator decodes what a job holds, as JSON or as msgpack.

A body that can't be decoded is buried, since no attempt will ever help; `gstalk info` shows it.

Run: python examples/json_and_msgpack.py [URI]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import msgpack

import gstalk

MessageHandler = Callable[[gstalk.Job, Any], None]


def decoded(loads: Callable[[bytes], Any]) -> Callable[[MessageHandler], Callable[[gstalk.Job], None]]:
    def decorate(handler: MessageHandler) -> Callable[[gstalk.Job], None]:
        @wraps(handler)
        def decode(job: gstalk.Job) -> None:
            try:
                message = loads(job.body)
            except ValueError as error:  # both libraries raise this, or one of its kinds
                print("job", job.id, "can't be decoded:", error)
                raise gstalk.Bury from error
            handler(job, message)

        return decode

    return decorate


def main(uri: str = "localhost:11300") -> None:
    with gstalk.Producer(uri) as producer:
        producer.put("mail", json.dumps({"to": "ann", "subject": "hello"}).encode())
        producer.put("mail", b'{"to": "bob"')
        producer.put("points", msgpack.packb({"at": [1.5, 2.5], "raw": b"\x00\xff"}))  # bytes stay bytes

    @decoded(json.loads)
    def send(job: gstalk.Job, message: Any) -> None:
        print("mail to", message["to"])

    @decoded(msgpack.unpackb)
    def draw(job: gstalk.Job, message: Any) -> None:
        print("point at", message["at"], message["raw"])
        consumer.stop()

    consumer = gstalk.Consumer(uri, ["mail", "points"], num_greenlets=1, auto_delete=True)
    consumer.receive({"mail": send, "points": draw})


if __name__ == "__main__":
    main(*sys.argv[1:])
