"""A program with a Consumer that somebody ends from the keyboard: ``interrupted.py idle|waits|computes URI``."""

from __future__ import annotations

import sys

import gevent

import gstalk

HANDLER, URI = sys.argv[1:]


def say(text: str) -> None:
    print(text, flush=True)


def waits(job: gstalk.Job) -> None:
    gevent.spawn(say, "waits")  # which runs when this waits
    gevent.sleep(60)


def computes(job: gstalk.Job) -> None:
    say("computes")
    while True:
        pass


def begins() -> None:
    consumer.wait_connected()
    say("begins")


consumer = gstalk.Consumer(URI, "t", stop_timeout=60, info_func=lambda message: None)
gevent.spawn(begins)
consumer.receive(globals().get(HANDLER, waits))
