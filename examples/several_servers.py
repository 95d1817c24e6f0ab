"""A Producer with several servers: puts go on while one of them is away.

Run: python examples/several_servers.py [URI ...]
"""

from __future__ import annotations

import sys

import gstalk


def main(*uris: str) -> None:
    servers = list(uris or ["localhost:11300"])
    nobody = "127.0.0.1:1"  # nothing listens there
    with gstalk.Producer(
        [*servers, nobody], error_func=lambda error, message: print(f"{message}: {error}")
    ) as producer:
        for number in range(10):
            job_id = producer.put("several", b"job %d" % number)
            print("job", job_id)

    # With no server at all, a put says so in time, and why.
    with gstalk.Producer(nobody, error_func=lambda error, message: None) as producer:
        try:
            producer.put("several", b"too late", timeout=0.2)
        except gstalk.PutTimeoutError as error:
            print(error, error.sent, list(error.causes))


if __name__ == "__main__":
    main(*sys.argv[1:])
