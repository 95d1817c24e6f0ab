"""A plain script, without greenlets or patching: each call waits for its answer, and the script ends when it is done.

Run: python examples/plain_script.py [URI]
"""

from __future__ import annotations

import sys

import gstalk


def main(uri: str = "localhost:11300") -> None:
    with gstalk.dial(uri) as conn:
        # One after the other; put_many doesn't wait for one answer before it sends the next.
        first = conn.put("plain", b"job 0")
        others = conn.put_many("plain", [b"job %d" % number for number in range(1, 5)])
        print("put", [first, *others])

        conn.watch("plain")
        while job := conn.reserve_with_timeout(0):
            print("job", job.id, "says", job.body.decode())
            job.delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
