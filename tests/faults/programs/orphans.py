"""A parent that holds jobs and waits to be killed, and its children: ``orphans.py STYLE URI CAFILE``.

The children never use what they have inherited; that of STYLE "bare" does not even call `gevent.reinit()`. The parent
prints their process ids when all of them run.
"""

from __future__ import annotations

import sys

if sys.argv[1] in ("patched", "multiprocessing"):
    from gevent import monkey

    monkey.patch_all()

import json
import multiprocessing
import os
import ssl
from typing import Any

import gevent
import gevent.os
from gevent.monkey import get_original

import gstalk

STYLE, URI = sys.argv[1], sys.argv[2]
OPTIONS: dict[str, Any] = {"tls_context": ssl.create_default_context(cafile=sys.argv[3])} if sys.argv[3] else {}
CHILDREN = 8
LIFE = 30  # seconds; the test ends them earlier


def child(write: int) -> None:
    os.write(write, b".")
    get_original("time", "sleep")(LIFE)


def fork(write: int) -> int:
    if STYLE == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child, args=(write,))
        process.start()
        return int(process.pid or 0)
    pid = gevent.os.fork() if STYLE == "gevent" else os.fork()
    if not pid:
        child(write)
        os._exit(0)
    return pid


def main() -> None:
    conn = gstalk.dial(URI, **OPTIONS)
    conn.watch("held")
    waiting = gstalk.dial(URI, **OPTIONS)
    waiting.watch("never")
    producer = gstalk.Producer(URI, multiply=2, **OPTIONS)
    consumer = gstalk.Consumer(URI, "worked", num_greenlets=5, **OPTIONS)
    producer.put_many("held", [b"x"] * 5)
    producer.put_many("worked", [b"x"] * 5)
    held = [conn.reserve() for _ in range(5)]
    gevent.spawn(waiting.reserve)
    gevent.spawn(consumer.receive, lambda job: gevent.sleep(LIFE))
    while conn.stats_tube("worked").current_jobs_reserved != 5:
        gevent.sleep(0.01)
    read, write = os.pipe()
    children = [fork(write) for _ in range(CHILDREN)]
    seen = 0
    while seen < CHILDREN:
        seen += len(os.read(read, CHILDREN))
    print(json.dumps(children), flush=True)
    gevent.sleep(LIFE)
    del held


main()
