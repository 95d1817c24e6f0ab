"""What a worker process has in hand, and how it counts and tells what became of it: jobs and clocks passed in."""

from __future__ import annotations

import logging
import sys
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.cli import _book
from gstalk.cli._book import Book
from gstalk.job import Job


class Owner:
    uri = "beanstalk://here:11300"


def job(job_id: int = 7, tube: str | None = "mail") -> Any:
    owner: Any = Owner()
    return Job(owner, job_id, b"secret", tube, 0.0, "held")


def handled(
    exception: BaseException | None = None, duration: float | None = 1.5, kind: Any = "handled"
) -> gstalk.Event:
    return gstalk.Event(
        kind=kind, uri=Owner.uri, tube="mail", job_id=7, attempt=2, exception=exception, duration=duration
    )


@pytest.mark.parametrize(
    ("exception", "is_ending", "counts", "shown", "outcome"),
    [
        (None, False, (1, 0, 0), "done", "done"),
        (None, True, (1, 0, 0), "done", "done"),
        (gstalk.Retry(), False, (1, 0, 0), "to be tried again", "released"),
        (gstalk.Bury(), True, (1, 0, 0), "buried", "buried"),
        (ValueError("secret"), False, (0, 1, 0), "failed with ValueError", "failed"),
        (ValueError("secret"), True, (0, 1, 0), "failed with ValueError", "failed"),
        (gevent.GreenletExit(), False, (0, 1, 0), "failed with GreenletExit", "failed"),
        (gevent.GreenletExit(), True, (0, 0, 1), "cut off, and released", "released"),
    ],
)
def test_end_of_a_job_is_counted_and_told(caplog, exception, is_ending, counts, shown, outcome):
    caplog.set_level(logging.INFO, "gstalk.work")
    book = Book(3)
    book.begin(job())
    assert (book.begun, len(book), book.finished.is_set()) == (1, 1, False)
    book.end(handled(exception), is_ending)
    assert (book.done, book.failed, book.cut) == counts
    assert (book.begun, len(book), book.finished.is_set()) == (1, 0, True)
    (record,) = caplog.records
    assert record.getMessage() == f"job 7 of mail: {shown}, 1.500 s"
    known: Any = record
    assert (known.outcome, known.uri, known.tube) == (outcome, Owner.uri, "mail")
    assert (known.job_id, known.attempt, known.duration) == (7, 2, 1.5)


def test_job_of_an_unknown_tube_is_told_without_what_nobody_knows(caplog):
    caplog.set_level(logging.INFO, "gstalk.work")
    book = Book(1)
    book.begin(job(tube=None))
    book.end(handled(duration=None), False)
    (record,) = caplog.records
    assert record.getMessage() == "job 7: done, 0.000 s"
    assert not hasattr(record, "tube")
    assert not hasattr(record, "duration")


def test_other_events_and_those_of_a_greenlet_without_a_job_are_no_end():
    book = Book(1)
    book.end(handled(), False)
    book.begin(job())
    book.end(handled(kind="handling"), False)
    gevent.spawn(book.end, handled(), False).join()
    assert (book.done, book.failed, book.cut, len(book), book.finished.is_set()) == (0, 0, 0, 1, False)


def test_look_tells_of_each_job_how_long_and_where(monkeypatch):
    now = 100.0
    monkeypatch.setattr(_book, "monotonic", lambda: now)
    book = Book(3)

    def handler(each: Any) -> None:
        book.begin(each)
        gevent.sleep(1000)

    greenlets = [gevent.spawn(handler, job(number)) for number in (1, 2)]
    gevent.sleep(0)
    now = 102.5
    book.done, book.failed = 1, 4
    first, *lines = book.look(sys._getframe())
    assert book.looked_at == 102.5
    assert first == "1 job done, 4 failed; 2 of 3 greenlets have a job"
    assert [line for line in lines if line.startswith("  job")] == [
        "  job 1 of mail for 2.5 s",
        "  job 2 of mail for 2.5 s",
    ]
    assert sum("in handler: gevent.sleep(1000)" in line for line in lines) == 2
    assert not any("other" in line for line in lines)
    assert "secret" not in str(lines)
    gevent.killall(greenlets)


def test_whereabouts_name_the_job_that_has_the_event_loop():
    book = Book(2)
    seen: list[str] = []

    def waits() -> None:
        book.begin(job(1))
        gevent.sleep(1000)

    def computes() -> None:
        book.begin(job(2))
        seen.append(book.whereabouts(sys._getframe()))

    waiting = gevent.spawn(waits)
    gevent.spawn(computes).join()
    seen.append(book.whereabouts(sys._getframe()))
    waiting.kill()
    assert seen[0].startswith("job 2 of mail, at ")
    assert "in computes: seen.append" in seen[0]
    assert seen[1].startswith("no job, at ")
