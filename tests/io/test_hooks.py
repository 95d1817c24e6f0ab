"""Log records of the logger `gstalk`: what they are about is in their attributes, and no body is."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.connection.hooks import ATTRIBUTES
from gstalk.testing import Beanstalkd
from tests.servers import CUT, Played, wait_until

PAGE = (Path(__file__).parent.parent.parent / "docs" / "logging.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SECRET = b"a body that nobody may see"
SOON = gstalk.RetryPolicy(first_delay=0, max_delay=0)


class Kept(logging.Handler):
    """Keeps the records, where `caplog` changes its list between a fixture and its test."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    caplog.set_level(logging.INFO, "gstalk")
    kept = Kept()
    logging.getLogger("gstalk").addHandler(kept)
    yield kept.records
    logging.getLogger("gstalk").removeHandler(kept)


def known(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name in ATTRIBUTES}


@pytest.fixture
def work(server: Beanstalkd, tube: str) -> Iterator[Callable[..., Any]]:
    """Have a Consumer handle the test's tube."""
    running: list[tuple[Any, gstalk.Consumer]] = []

    def begin(handler: Any, uri: str = "", tubes: list[str] | None = None, **options: Any) -> gstalk.Consumer:
        consumer = gstalk.Consumer(uri or server.uri, tubes or tube, **options)
        running.append((gevent.spawn(consumer.receive, handler), consumer))
        return consumer

    yield begin
    for receiver, consumer in running:
        consumer.stop(0)
        receiver.join()


def fail(job: gstalk.Job) -> None:
    raise ValueError("no such address")


def finish_and_fail(job: gstalk.Job) -> None:
    job.delete()
    fail(job)


def retry_wrongly(job: gstalk.Job) -> None:
    raise gstalk.Retry(delay=-1)


@pytest.mark.real
@pytest.mark.parametrize(
    ("handler", "retry", "attempt", "outcome"),
    [
        (fail, gstalk.RetryPolicy(first_delay=100), 1, "released"),
        (fail, gstalk.RetryPolicy(max_attempts=1), 1, "buried"),
        (fail, gstalk.RetryPolicy(max_attempts=1, exhausted="delete"), 1, "deleted"),
        (finish_and_fail, SOON, 1, "finished"),
        (finish_and_fail, gstalk.RetryPolicy(max_attempts=None), None, "finished"),
        (lambda job: None, gstalk.RetryPolicy(first_delay=100), 1, "released"),
        (retry_wrongly, gstalk.RetryPolicy(first_delay=100), 1, "released"),
    ],
)
def test_failed_handlers_record_tells_the_job_and_its_outcome(
    server, conn, tube, work, records, handler, retry, attempt, outcome
):
    job_id = conn.put(tube, SECRET)
    work(handler, retry=retry)
    wait_until(lambda: records)
    told = known(records[0])
    assert 0 <= told.pop("duration") < 30
    wanted = {"uri": server.uri, "job_id": job_id, "tube": tube, "attempt": attempt, "outcome": outcome}
    assert told == {name: value for name, value in wanted.items() if value is not None}
    assert SECRET.decode() not in repr(vars(records[0]))


@pytest.mark.real
def test_second_attempt_is_counted(conn, tube, work, records):
    conn.put(tube, SECRET)
    work(fail, retry=gstalk.RetryPolicy(max_attempts=3, first_delay=0, max_delay=0))
    wait_until(lambda: len(records) == 3)
    assert [(each.attempt, each.outcome) for each in records] == [(1, "released"), (2, "released"), (3, "buried")]


@pytest.mark.real
def test_job_that_was_lost_is_told_as_such(conn, tube, work, records):
    job_id = conn.put(tube, SECRET, ttr=1)

    def outlive(job: gstalk.Job) -> None:
        wait_until(lambda: conn.stats_job(job_id).state == "ready")
        with suppress(gstalk.JobLostError):
            job.touch()
        conn.delete(job_id)
        fail(job)

    work(outlive)
    wait_until(lambda: records)
    assert (records[0].job_id, records[0].outcome) == (job_id, "lost")


@pytest.mark.real
def test_job_that_given_up_func_finishes_is_told_as_finished(conn, tube, work, records):
    job_id = conn.put(tube, SECRET)
    once = gstalk.RetryPolicy(max_attempts=1)
    work(fail, retry=once, given_up_func=lambda job, exception: job.delete())
    wait_until(lambda: records)
    assert (records[0].job_id, records[0].attempt, records[0].outcome) == (job_id, 1, "finished")


@pytest.mark.real
def test_job_lost_with_its_worker_too_often_is_told_as_buried(server, conn, tube, work, records):
    job_id = conn.put(tube, SECRET)
    for _ in range(3):
        with gstalk.dial(server.uri) as dying:
            wait_until(lambda: conn.stats_job(job_id).state == "ready")
            dying.reserve_job(job_id)
    wait_until(lambda: conn.stats_job(job_id).state == "ready")
    work(fail, retry=gstalk.RetryPolicy(max_attempts=1, exhausted="delete"))
    wait_until(lambda: records)
    told = known(records[0])
    assert (told["job_id"], told["attempt"], told["outcome"]) == (job_id, 4, "buried")


def test_release_that_buries_is_told_as_buried(play, work, records):
    played = play({"reserve-with-timeout": [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"], "release": b"BURIED\r\n"})
    work(fail, uri=played.uri)
    wait_until(lambda: records)
    assert (records[0].job_id, records[0].outcome) == (7, "buried")


def test_timeout_left_behind_is_told_with_its_job(play, work, records):
    """What becomes of the job isn't decided yet, and so is no attribute."""
    late = [b"stats-job 7"]

    def answer_late(line: bytes) -> None:
        if line in late:
            late.clear()
            gevent.sleep(0.2)

    def leave_behind(job: gstalk.Job) -> None:
        gevent.Timeout.start_new(0.05)
        fail(job)

    played = play({"reserve-with-timeout": [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"], "stats-job": answer_late})
    work(leave_behind, uri=played.uri, retry=gstalk.RetryPolicy(max_attempts=None))
    wait_until(lambda: len(records) == 2)
    assert known(records[0]).keys() == {"uri", "tube", "job_id", "duration"}
    assert (records[1].job_id, records[1].outcome) == (7, "released")


@pytest.mark.real
def test_tube_that_is_not_known_is_no_attribute(conn, tube, work, records):
    """With several tubes nobody asked the server for this one's."""
    conn.put(tube, SECRET)
    work(finish_and_fail, tubes=[tube, f"{tube}-2"], retry=gstalk.RetryPolicy(max_attempts=None))
    wait_until(lambda: records)
    assert known(records[0]).keys() == {"uri", "job_id", "outcome", "duration"}


def test_automatic_delete_that_failed_is_told_with_its_job(play, work, records):
    played: Played = play(
        {
            "reserve-with-timeout": [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"],
            "delete": b"INTERNAL_ERROR\r\n",
        }
    )
    work(lambda job: None, uri=played.uri, auto_delete=True)
    wait_until(lambda: any("not deleted" in each.getMessage() for each in records))
    (record,) = [each for each in records if "not deleted" in each.getMessage()]
    told = known(record)
    assert (told["job_id"], told["uri"], told["attempt"], told["outcome"]) == (7, played.uri, 1, "released")


def test_reserve_that_was_refused_is_told_with_its_server(play, work, records):
    played = play({"reserve-with-timeout": [b"OUT_OF_MEMORY\r\n", b"TIMED_OUT\r\n"]})
    work(fail, uri=played.uri)
    wait_until(lambda: records)
    assert known(records[0]) == {"uri": played.uri}


@pytest.mark.real
def test_outage_is_told_with_its_server(own_server, records):
    with gstalk.Producer(own_server.uri, reconnect_timeout=0.1) as producer:
        assert producer.wait_connected(10)
        own_server.stop()
        wait_until(lambda: len(records) == 2)
        own_server.start()
        wait_until(lambda: len(records) == 3)
    assert [known(each) for each in records] == [
        {"uri": own_server.uri, "outcome": outcome} for outcome in ("disconnected", "disconnected", "connected")
    ]


@pytest.mark.real
def test_own_functions_are_called_as_ever(conn, tube, work):
    """With the exception and the message, and nothing else."""
    told: list[tuple[Any, ...]] = []
    conn.put(tube, SECRET)
    work(fail, error_func=lambda *args, **more: told.append((*args, more)), retry=gstalk.RetryPolicy(max_attempts=1))
    wait_until(lambda: told)
    assert isinstance(told[0][0], ValueError)
    assert told[0][1].startswith("job ")
    assert told[0][2] == {}


def test_error_object_that_a_hook_raises_for_each_event_keeps_few_of_them(server, conn, tube, records):
    """Python puts the frames of each raise before those of the last one, and they hold what the hook was given."""
    error = ValueError("made once")

    def hook(event):
        raise error

    with gstalk.Producer(server.uri, event_func=hook) as producer:
        for _ in range(10):
            producer.put(tube, b"")
    trace, depth = error.__traceback__, 0
    while trace is not None:
        trace, depth = trace.tb_next, depth + 1
    assert depth == 2


def test_cut_connection_needs_no_job(play, records):
    played = play({"put": CUT})
    with gstalk.Producer(played.uri, put_timeout=0.3) as producer:
        with pytest.raises(gstalk.DisconnectedError):
            producer.put("t", SECRET)
    assert records
    assert all(known(each).keys() <= {"uri", "outcome"} for each in records)


# -- docs/logging.md ---------------------------------------------------------------------------------------------


def test_page_has_every_attribute():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(ATTRIBUTES)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["standard", "json", "structlog"])
def test_page_snippets_show_the_attributes(monkeypatch, play, number):
    """A connection's record, which has no job, and a job's."""
    for name in ("pythonjsonlogger", "structlog")[: number - 1]:
        pytest.importorskip(name)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logger = logging.getLogger("gstalk")
    saved = logger.handlers[:], logger.level
    try:
        names: dict[str, Any] = {}
        for snippet in SNIPPETS[:number]:
            exec(compile(snippet, "logging.md", "exec"), names)
        logger.error(
            "%s: %s", "job 7", "it", extra={"job_id": 7, "tube": "mail", "outcome": "released", "duration": 0.5}
        )
        logger.info("connected again", extra={"uri": "beanstalk://q1:11300", "outcome": "connected"})
    finally:
        logger.handlers[:], logger.level = saved
    first, second = stream.getvalue().splitlines()
    if number == 1:
        assert first.endswith("ERROR job 7: it [job=7 outcome=released]")
        assert second.endswith("INFO connected again [job=- outcome=connected]")
    else:
        told = json.loads(first)
        assert (told["job_id"], told["tube"], told["outcome"], told["duration"]) == (7, "mail", "released", 0.5)
        assert json.loads(second)["uri"] == "beanstalk://q1:11300"
        assert "job_id" not in json.loads(second)
        assert (told.get("event") or told["message"]) == "job 7: it"
