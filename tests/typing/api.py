"""The public interface as a type checker sees it. Checked by mypy, never run; it grows with each public name."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TypedDict

from typing_extensions import Unpack, assert_type

import gstalk
from gstalk.config import Options


def conn() -> None:
    with gstalk.dial("localhost", gstalk.Config(), conn_timeout=timedelta(seconds=3)) as conn:
        assert_type(conn, gstalk.Conn)
        assert_type(conn.uri, str)
        assert_type(conn.is_connected, bool)
        assert_type(conn.put("t", b"x"), int)
        assert_type(conn.put("t", bytearray(b"x"), gstalk.PutParams(ttr=5)), int)
        assert_type(conn.put("t", memoryview(b"x"), priority=1, delay=0.5, ttr=timedelta(minutes=1)), int)
        assert_type(conn.put_many("t", (b"x" for _ in range(3))), list[int])
        assert_type(conn.reserve(), gstalk.Job)
        assert_type(conn.reserve_with_timeout(0.5), gstalk.Job | None)
        job = conn.reserve_job(7)
        assert_type(job, gstalk.Job)
        for which in (job, 7):
            conn.delete(which)
            conn.touch(which)
            conn.kick_job(which)
            conn.release(which, 9, delay=timedelta(seconds=1))
            conn.bury(which, priority=9)
            assert_type(conn.stats_job(which), gstalk.JobStats)
        assert_type(conn.kick("t", 10), int)
        assert_type(conn.peek(7), gstalk.Job | None)
        assert_type(conn.peek_ready("t"), gstalk.Job | None)
        assert_type(conn.peek_delayed("t"), gstalk.Job | None)
        assert_type(conn.peek_buried("t"), gstalk.Job | None)
        conn.use("t")
        assert_type(conn.watch("t"), int)
        assert_type(conn.ignore("t"), int)
        assert_type(conn.list_tubes(), list[str])
        assert_type(conn.list_tubes_watched(), list[str])
        assert_type(conn.list_tube_used(), str)
        assert_type(conn.stats(), gstalk.ServerStats)
        assert_type(conn.stats_tube("t"), gstalk.TubeStats)
        conn.pause_tube("t", 1.5)
        conn.close()


def job(job: gstalk.Job) -> None:
    assert_type(job.id, int)
    assert_type(job.body, bytes)
    assert_type(job.tube, str | None)
    assert_type(job.reserved_at, float | None)
    assert_type(job.is_finished, bool)
    assert_type(job.is_lost, bool)
    assert_type(job.uri, str)
    assert_type(job.stats(), gstalk.JobStats)
    assert_type(job.time_left(), float)
    job.touch()
    job.kick()
    job.release(priority=1, delay=timedelta(seconds=1))
    job.bury(priority=1)
    job.delete()


def producer(bodies: Iterator[bytes]) -> None:
    with gstalk.Producer(["q1", "q2:11301"], multiply=2) as producer:
        assert_type(producer, gstalk.Producer)
        assert_type(producer.is_connected, bool)
        assert_type(producer.wait_connected(timeout=3), bool)
        assert_type(producer.put("t", b"x", timeout=None), int)
        assert_type(producer.put_many("t", bodies, gstalk.PutParams(), timeout=2), list[int])
        producer.stop(timeout=timedelta(seconds=1))
    gstalk.Producer("q1", gstalk.Config(tls_context=ssl.create_default_context()))


def consumer() -> None:
    consumer = gstalk.Consumer("q1", ["t", "u"], auto_delete=True)
    assert_type(consumer.is_connected, bool)
    assert_type(consumer.wait_connected(), bool)
    assert_type(consumer.tubes, list[str])
    consumer.watch("v")
    consumer.watch("v", job)
    consumer.watch("v", handler=lambda job: job.delete())
    consumer.ignore("v")
    consumer.receive(job)
    consumer.receive({"t": job, "u": lambda job: None})
    consumer.receive(lambda job: job.delete())
    consumer.stop()
    consumer.stop(timeout=None)


class Settings(TypedDict, total=False):
    auto_delete: bool
    stop_timeout: float


def options(**options: Unpack[Options]) -> gstalk.Consumer:
    """A function that hands options on; and where they come from a dict, or one by one."""
    every: Options = {"num_greenlets": 3, "retry": gstalk.RetryPolicy(), "conn_timeout": None}
    some: Settings = {"auto_delete": True}
    assert_type(gstalk.dial("q1", **every), gstalk.Conn)
    assert_type(gstalk.Producer("q1", put_timeout=timedelta(seconds=3), **some), gstalk.Producer)
    assert_type(gstalk.Config(**every), gstalk.Config)
    assert_type(gstalk.Config().replace(**some), gstalk.Config)
    gstalk.Consumer("q1", "t", gstalk.Config(), time_limit=None, event_func=told, error_func=failed, **some)
    return gstalk.Consumer("q1", "t", **options)


def failed(error: BaseException, message: str) -> None:
    assert_type(message, str)


def given_up(job: gstalk.Job, exception: BaseException) -> None:
    job.delete()


def told(event: gstalk.Event) -> None:
    assert_type(event.kind, str)
    assert_type(event.exception, BaseException | None)
    assert_type(event.duration, float | None)


class AsyncHandler:
    async def __call__(self, job: gstalk.Job) -> None: ...


async def async_handler(job: gstalk.Job) -> None: ...


async def async_told(*told: object) -> None: ...


def yielding(job: gstalk.Job) -> Iterator[bytes]:
    yield job.body


def refused_async(consumer: gstalk.Consumer) -> None:
    """A call of these would run nothing; as in `refused`, an ignore that isn't needed is an error in itself."""
    consumer.receive(async_handler)  # type: ignore[arg-type]
    consumer.receive(AsyncHandler())  # type: ignore[arg-type]
    consumer.receive(AsyncHandler().__call__)  # type: ignore[arg-type]
    consumer.receive(lambda job: async_handler(job))  # type: ignore[arg-type,return-value]
    consumer.receive(yielding)  # type: ignore[arg-type]
    consumer.receive({"t": async_handler})  # type: ignore[dict-item]
    consumer.watch("t", async_handler)  # type: ignore[arg-type]
    gstalk.Config(info_func=async_told)  # type: ignore[arg-type]
    gstalk.Config(error_func=async_told)  # type: ignore[arg-type]
    gstalk.Config(event_func=async_told)  # type: ignore[arg-type]
    gstalk.Config(given_up_func=async_told)  # type: ignore[arg-type]


def values_given_back(consumer: gstalk.Consumer, values: list[object]) -> None:
    """They are dropped."""
    consumer.receive(lambda job: len(job.body))
    consumer.receive(lambda job: (job.id, {job.body: [job.uri]}))
    consumer.receive(values.append)
    gstalk.Config(info_func=sys.stderr.write, error_func=lambda error, message: values.append(error))
    gstalk.Config(given_up_func=lambda job, exception: job.delete())


def config() -> None:
    config = gstalk.Config(
        put_timeout=None,
        info_func=print,
        error_func=lambda error, message: print(error.args, message.upper()),
        event_func=told,
        given_up_func=given_up,
        retry=gstalk.RetryPolicy(max_attempts=None, exhausted="delete", first_delay=timedelta(seconds=1)),
    )
    assert_type(config, gstalk.Config)
    assert_type(config.replace(multiply=2), gstalk.Config)


def values() -> None:
    address = gstalk.parse_uri("q1")
    assert_type(address, gstalk.Address)
    assert_type(address.port, int | None)
    assert_type(gstalk.validate_uris(["q1"]), list[gstalk.Address])
    stats = gstalk.ServerStats.parse(b"---\n")
    assert_type(stats.current_jobs_ready, int | None)
    assert_type(stats.draining, bool | None)
    assert_type(stats.extra, dict[str, str])


def errors(error: Exception) -> None:
    if isinstance(error, gstalk.PutTimeoutError):
        assert_type(error.causes, dict[str, BaseException])
    if isinstance(error, gstalk.PutManyError):
        assert_type(error.results, list[int | BaseException])
    if isinstance(error, gstalk.RetriesExhaustedError):
        assert_type(error.attempts, int)
    if isinstance(error, gstalk.BuriedError):
        assert_type(error.job_id, int | None)
    raise gstalk.Retry(delay=timedelta(seconds=1), priority=3) from gstalk.Bury(priority=3)


async def handle_later(job: gstalk.Job) -> None: ...


def handle_in_parts(job: gstalk.Job) -> Iterator[None]:
    yield


def refused_handlers(consumer: gstalk.Consumer) -> None:
    """A call of these would run nothing."""
    consumer.receive(handle_later)  # type: ignore[arg-type]
    consumer.receive({"t": handle_later})  # type: ignore[dict-item]
    consumer.receive(handle_in_parts)  # type: ignore[arg-type]


def refused(conn: gstalk.Conn) -> None:
    """What a checker must refuse; an ignore that isn't needed is an error in itself."""
    conn.put("t", "text")  # type: ignore[arg-type]
    conn.put(b"t", b"x")  # type: ignore[arg-type]
    conn.reserve_with_timeout(None)  # type: ignore[arg-type]
    # mypy says one or the other, by whether it has read gstalk or taken it from its cache.
    gstalk.Config(5)  # type: ignore[call-arg, arg-type, unused-ignore]
    gstalk.Config(num_greenlet=5)  # type: ignore[call-arg]
    gstalk.RetryPolicy(exhausted="drop")  # type: ignore[arg-type]
    gstalk.dial("q1", conn_timeuot=5)  # type: ignore[call-arg]
    gstalk.Producer("q1", num_greenlet=5)  # type: ignore[call-arg]
    gstalk.Consumer("q1", "t", num_greenlet=5)  # type: ignore[call-arg]
    gstalk.Config().replace(num_greenlet=5)  # type: ignore[call-arg]
    gstalk.Consumer("q1", "t", num_greenlets="5")  # type: ignore[arg-type]
    gstalk.Consumer("q1", "t", event_func=failed)  # type: ignore[arg-type]
    gstalk.Consumer("q1", "t", given_up_func=failed)  # type: ignore[arg-type]
    gstalk.Producer("q1", retry=None)  # type: ignore[arg-type]
