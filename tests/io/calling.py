"""Calls of a Conn in greenlets, and their interruption."""

from __future__ import annotations

import gevent

__all__ = ["call", "held", "interrupt"]


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
