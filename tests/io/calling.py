"""Calls of a Conn in greenlets, and their interruption."""

from __future__ import annotations

import threading

import gevent
from gevent import get_hub

from tests.servers import wait_until

__all__ = ["SLACK", "call", "held", "hold", "in_thread", "interrupt", "waiting"]

SLACK = 1.5  # seconds that a noisy machine may take on top


def held(conn, tube, body=b"body", **params):
    """Put a job and reserve it."""
    job_id = conn.put(tube, body, **params)
    job = conn.reserve_with_timeout(5)
    assert job is not None
    assert job.id == job_id
    return job


def call(method, *args, **keywords):
    """Start a call in a greenlet, and let it get as far as it can without a reply."""
    greenlet = gevent.spawn(method, *args, **keywords)
    gevent.sleep(0)
    return greenlet


def interrupt(method, error):
    """Call something, and interrupt its wait; returns what it raised."""
    caught = []

    def run():
        try:
            method()
        except BaseException as raised:
            caught.append(raised)

    call(run).kill(error)
    return caught[0] if caught else None


def waiting(conn, other):
    """Start a reserve, and return when the server has it."""
    before = other.stats().current_waiting
    reserver = call(conn.reserve)
    wait_until(lambda: other.stats().current_waiting == before + 1)
    return reserver


def hold(conn, other, tube, **params):
    """Have a connection hold a job of another tube than the one it watches."""
    return conn.reserve_job(other.put(f"{tube}-held", b"held", **params))


def in_thread(*methods):
    """Call things in another thread; returns what each raised, or `None`."""
    raised: list[BaseException | None] = []

    def run():
        for method in methods:
            try:
                method()
                raised.append(None)
            except BaseException as error:
                raised.append(error)
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    return raised
