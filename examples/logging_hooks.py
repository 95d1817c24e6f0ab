"""Hooks for messages, errors and events, in place of the standard logger `gstalk`.

Run: python examples/logging_hooks.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    config = gstalk.Config(
        info_func=lambda message: print("info:", message),
        error_func=lambda error, message: print("error:", message, "-", repr(error)),
        event_func=lambda event: print("event:", event.kind, event.job_id, event.duration),
        retry=gstalk.RetryPolicy(max_attempts=1, exhausted="delete"),
    )
    with gstalk.Producer(uri, config) as producer:
        producer.put("hooks", b"this one fails")

    consumer = gstalk.Consumer(uri, "hooks", config)

    def handler(job: gstalk.Job) -> None:
        consumer.stop()
        raise ValueError("something is wrong with this job")

    consumer.receive(handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
