"""A fork while a Producer dials, waits for a connection, or waits for replies: ``fork_in_flight.py WHAT URI CAFILE``.

The test stands between it and the server, and says with SIGUSR1 when to go on. 4 children are forked; each puts once
itself, and says how the copies of the parent's puts ended there. The parent says how its own did.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
from time import monotonic
from typing import Any

import gevent
import gevent.os
from gevent.event import Event

import gstalk
from tests.faults.programs.saying import outcome, say

WHAT, URI = sys.argv[1], sys.argv[2]
OPTIONS: dict[str, Any] = {"tls_context": ssl.create_default_context(cafile=sys.argv[3])} if sys.argv[3] else {}
go_on = Event()
ends: list[str] = []


def wait_for_the_test() -> None:
    say()
    while not go_on.wait(10):  # a signal's watcher alone keeps no loop alive
        pass
    go_on.clear()


def main() -> None:
    gevent.signal_handler(signal.SIGUSR1, go_on.set)
    quiet: dict[str, Any] = {"info_func": lambda message: None, "error_func": lambda error, message: None}
    producer = gstalk.Producer(URI, multiply=4, reconnect_timeout=0.2, **quiet, **OPTIONS)
    putters = []
    if WHAT != "dial":
        if WHAT == "reply":
            producer.wait_connected()
        wait_for_the_test()
        for _ in range(8):
            putters.append(gevent.spawn(lambda: ends.append(outcome(lambda: producer.put("once", b"x")))))
    gevent.sleep(0)
    wait_for_the_test()
    for _ in range(4):
        if not gevent.os.fork():
            own = outcome(lambda: producer.put("own", b"x"))
            gevent.joinall(putters, timeout=20)
            begin = monotonic()
            producer.stop()
            say(own=own, copies=ends, stop=monotonic() - begin)
            os._exit(0)
    say()
    begin = monotonic()
    producer.wait_connected()
    say(parent=True, connect=monotonic() - begin)
    gevent.joinall(putters)
    own = outcome(lambda: producer.put("own", b"x"))
    say(parent=True, own=own, puts=ends)
    for _ in range(4):
        while gevent.os.waitpid(-1, os.WNOHANG)[0] == 0:
            gevent.sleep(0.01)
    producer.stop()


main()
