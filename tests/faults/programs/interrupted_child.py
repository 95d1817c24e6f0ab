"""A child forked in a handler, and what Ctrl-C does there: ``interrupted_child.py URI``."""

from __future__ import annotations

import json
import os
import signal
import sys

import gevent


def say(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def press(who: str) -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        say(f"{who}: KeyboardInterrupt")
    else:
        say(f"{who}: nothing")


def early() -> None:
    """Another library's hook, which runs before those of gstalk."""
    press("hook")


os.register_at_fork(after_in_child=early)

import gstalk  # noqa: E402  # after the hook


def handler(job: gstalk.Job) -> None:
    child = os.fork()
    if not child:
        ours = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        press("child")
        os._exit(ours)
    _, status = os.waitpid(child, 0)
    assert status == 0
    job.delete()
    consumer.stop()


consumer = gstalk.Consumer(sys.argv[1], "t", info_func=lambda message: None)
with gstalk.dial(sys.argv[1]) as conn:
    conn.put("t", b"x")
with gevent.Timeout(20):
    consumer.receive(handler)
say("parent")
