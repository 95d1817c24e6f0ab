"""Consumer: what it is made of, several servers, outages, idleness, hooks."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from gstalk.connection.transport import Transport
from tests.faults.hub import silent_hub
from tests.io.working import AT_ONCE, state
from tests.servers import wait_until

pytestmark = pytest.mark.real


# -- what it is made of ------------------------------------------------------------------------------------------


def test_consumer_malformed_uri_tube_or_option_is_refused(server):
    for uris, tubes in (("redis://x", "t"), ([], "t"), (server.uri, []), (server.uri, ["t", "a b"])):
        with pytest.raises(gstalk.InvalidArgumentError):
            gstalk.Consumer(uris, tubes)
    with pytest.raises(TypeError):
        gstalk.Consumer(server.uri, [b"t"])  # type: ignore[list-item]
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.Consumer(server.uri, "t", num_greenlets=0)


def test_receive_handler_that_cannot_be_called_is_refused(server):
    consumer = gstalk.Consumer(server.uri, ["a", "b"])
    with pytest.raises(TypeError):
        consumer.receive(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        consumer.receive({"a": print, "b": None})  # type: ignore[dict-item]
    with pytest.raises(gstalk.InvalidArgumentError):
        consumer.receive({"a": print})


def test_receive_watches_the_tubes_and_not_default(work, conn, other, tube):
    worker = work(lambda job: job.delete(), tubes=[tube, f"{tube}-b"])
    assert worker.consumer.wait_connected(5)
    left = other.put("default", b"")
    put = [other.put(tube, b""), other.put(f"{tube}-b", b"")]
    wait_until(lambda: [state(other, job_id) for job_id in put] == [None, None])
    assert state(other, left) == "ready"
    other.delete(left)


def test_is_connected_is_false_outside_of_receive(work, tube):
    worker = work(lambda job: None)
    assert worker.consumer.wait_connected(5)
    assert worker.consumer.is_connected
    worker.stop()
    assert not worker.consumer.is_connected
    assert worker.consumer.wait_connected(0) is False


def test_hook_that_waits_for_the_connection_that_its_own_greenlet_makes_is_refused(own_server, work):
    """In vain it would wait, and the Consumer would never connect again."""
    refused: list[BaseException] = []

    def hook(message: str) -> None:
        try:
            worker.consumer.wait_connected()
        except BlockingSwitchOutError as error:
            refused.append(error)

    worker = work(lambda job: None, own_server.uri, info_func=hook, reconnect_timeout=0.1)
    assert worker.consumer.wait_connected(5)
    own_server.kill()
    wait_until(lambda: bool(refused))
    own_server.start()
    assert worker.consumer.wait_connected(5)


def test_receive_uses_multiply_connections_per_uri(own_server, work, connect):
    conn = connect(own_server.uri)
    work(lambda job: None, own_server.uri, multiply=3)
    wait_until(lambda: conn.stats().current_connections == 4)


def test_receive_beside_another_raises_runtime_error(work, tube):
    worker = work(lambda job: None)
    gevent.sleep(0)
    with pytest.raises(RuntimeError):
        worker.consumer.receive(print)


def test_receive_again_after_a_stop_works(server, conn, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    for turn in range(3):
        got: list[Any] = []

        def handler(job, got=got):
            got.append(job.body)
            job.delete()
            consumer.stop()

        conn.put(tube, b"%d" % turn)
        consumer.receive(handler)
        assert got == [b"%d" % turn]


# -- outages -----------------------------------------------------------------------------------------------------


def test_connection_lost_handlers_jobs_are_lost_and_run_again_after_it_is_back(own_server, work, connect):
    results: list[Any] = []
    started = Event()

    def handler(job):
        started.set()
        if not results:
            wait_until(lambda: job.is_lost)
            for call in (job.delete, job.touch):
                with pytest.raises(gstalk.JobLostError):
                    call()
            results.append("lost")
            raise ValueError
        job.delete()
        results.append(job.body)

    conn = connect(own_server.uri)
    conn.put("t", b"before")
    worker = work(handler, own_server.uri, "t", reconnect_timeout=0.2)
    assert started.wait(5)
    own_server.restart()
    wait_until(lambda: results == ["lost"])
    with gstalk.dial(own_server.uri) as again:
        again.put("t", b"after")
        wait_until(lambda: results == ["lost", b"after"])
    assert ValueError in worker.kinds()


@pytest.mark.slow
def test_connection_whose_keepalive_cannot_be_sent_is_lost_and_nothing_else(own_server, work, connect, monkeypatch):
    sends = Transport.write
    connect(own_server.uri).put("t", b"x")

    def write(self, data):
        if data == b"list-tube-used\r\n" and refused == []:
            refused.append(self)
            raise gstalk.ConnectionLostError("connection reset by peer")
        return sends(self, data)

    refused: list[Transport] = []
    monkeypatch.setattr(Transport, "write", write)
    with silent_hub():
        jobs = []

        def handler(job):
            jobs.append(job)
            gevent.sleep(2)
            job.delete()

        worker = work(handler, own_server.uri, "t", multiply=2)
        wait_until(lambda: len(jobs) == 2)
        assert len(refused) == 1
        assert jobs[0].is_lost
        worker.stop()


# -- hooks -------------------------------------------------------------------------------------------------------


def test_hooks_that_raise_harm_nothing(work, conn, tube):
    def bad(*_):
        raise RuntimeError("hook")

    done = []

    def handler(job):
        done.append(job.id)
        if len(done) < 5:
            raise ValueError
        job.delete()

    work(handler, retry=AT_ONCE, error_func=bad, info_func=bad, event_func=bad)
    conn.put(tube, b"")
    wait_until(lambda: len(done) == 5)


def test_error_func_left_out_errors_go_to_the_standard_logger(server, conn, tube, caplog):
    consumer = gstalk.Consumer(server.uri, tube)

    def handler(job):
        consumer.stop()
        raise ValueError("own")

    job_id = conn.put(tube, b"")
    consumer.receive(handler)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.name == "gstalk"
    assert str(job_id) in record.getMessage()
    assert "own" in record.getMessage()


def test_events_tell_of_handled_and_failed_jobs(work, conn, server, tube):
    def handler(job):
        if job.body == b"bad":
            raise ValueError
        job.delete()

    worker = work(handler)
    good, bad = conn.put(tube, b"good"), conn.put(tube, b"bad")
    wait_until(lambda: len([event for event in worker.events if event.kind == "handled"]) == 2)
    found = {event.job_id: event for event in worker.events if event.kind == "handled"}
    assert found[good].exception is None
    assert (found[bad].uri, found[bad].tube, found[bad].attempt) == (server.uri, tube, 1)
    assert isinstance(found[bad].exception, ValueError)
    assert isinstance(found[good].duration, float)
