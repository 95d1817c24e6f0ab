"""A Consumer at work in a greenlet of the test."""

from __future__ import annotations

from typing import Any

import gevent

import gstalk

__all__ = ["Worker", "state"]


class Worker:
    """A Consumer whose `receive` runs in a greenlet, and what its hooks were told."""

    def __init__(self, uris: Any, tubes: Any, handler: Any, **options: Any) -> None:
        self.errors: list[tuple[BaseException, str]] = []
        self.events: list[gstalk.Event] = []
        options.setdefault("error_func", lambda error, message: self.errors.append((error, message)))
        options.setdefault("info_func", lambda message: None)
        options.setdefault("event_func", self.events.append)
        self.consumer = gstalk.Consumer(uris, tubes, **options)
        self.raised: BaseException | None = None
        self.receiver = gevent.spawn(self._receive, handler)

    def _receive(self, handler: Any) -> None:
        try:
            self.consumer.receive(handler)
        except BaseException as error:
            self.raised = error

    def stop(self, *timeout: Any) -> None:
        self.consumer.stop(*timeout)
        self.receiver.get(timeout=20)

    def kinds(self) -> list[type[BaseException]]:
        return [type(error) for error, _ in self.errors]


def state(conn: gstalk.Conn, job_id: int) -> str | None:
    """A job's state, `None` if it is gone."""
    try:
        return conn.stats_job(job_id).state
    except gstalk.NotFoundError:
        return None
