"""A Consumer beside a handler of SIGINT that gevent has set up: ``gevent_handler.py WHEN URI``.

The handler is set up before `receive` is called, or during it. It hears every SIGINT, and `receive` none.
"""

from __future__ import annotations

import json
import signal
import sys

import gevent

import gstalk

WHEN, URI = sys.argv[1:3]


def main() -> None:
    heard: list[str] = []
    consumer = gstalk.Consumer(URI, "t", info_func=lambda message: None)
    if WHEN == "before":
        gevent.signal_handler(signal.SIGINT, heard.append, "heard")
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    consumer.wait_connected()
    if WHEN == "during":
        gevent.signal_handler(signal.SIGINT, heard.append, "heard")
    over = []
    for number in range(1, 4):
        if number == 3:
            consumer.stop()
            receiving.get()
        signal.raise_signal(signal.SIGINT)
        while len(heard) < number:
            gevent.sleep(0.005)
        over.append(receiving.ready())
    print(json.dumps({"heard": len(heard), "over": over}))


main()
