"""A Consumer at work in a greenlet of the test; handlers for it, and what befalls their jobs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import gevent

import gstalk
from tests.servers import wait_until

__all__ = """
    AT_ONCE BUG NEVER ONE_JOB OwnBase Worker async_def cut end_by_sleep lose raising refuse_automatic_delete
    state tag
""".split()

AT_ONCE = gstalk.RetryPolicy(first_delay=0, max_delay=0)
NEVER = gstalk.RetryPolicy(max_attempts=None)  # nothing is looked at

# What a played server says.
ONE_JOB = [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"]
BUG = b"INTERNAL_ERROR\r\n"

tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="none")


class OwnBase(BaseException):
    """A program's own, beside `Exception`."""


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


def refuse_automatic_delete(play: Any, work: Any, **options: Any) -> Any:
    """Have a handler end well whose job's automatic delete the server refuses; `tag` is set in its context."""
    played = play({"reserve-with-timeout": ONE_JOB, "delete": BUG})
    work(lambda job: tag.set(f"job {job.id}") and None, played.uri, "default", auto_delete=True, **options)
    return played


def raising(error: BaseException) -> Callable[[gstalk.Job], None]:
    def handler(job: gstalk.Job) -> None:
        raise error

    return handler


def lose(conn: gstalk.Conn, uri: str, job_id: int, times: int) -> None:
    """Have a job lost with its connection, as `kill -9` of a worker does, or a stop that meets it on its way."""
    for _ in range(times):
        with gstalk.dial(uri) as dying:
            wait_until(lambda: state(conn, job_id) == "ready")
            dying.reserve_job(job_id)
    wait_until(lambda: state(conn, job_id) == "ready")


def cut(job: gstalk.Job) -> None:
    """End the job's connection."""
    owner: Any = job._owner
    owner.cut()


def end_by_sleep(job: gstalk.Job) -> None:
    gevent.sleep(60)


async def async_def(job: gstalk.Job) -> None: ...
