"""Consumer: what it is made of, several servers, outages, idleness, hooks."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection.transport import Transport
from gstalk.testing import Beanstalkd
from tests.faults.hub import silent_hub
from tests.io.working import AT_ONCE, state
from tests.servers import CUT, wait_until

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


RUINED = b"RESERVED 7 3\r\n\0\0\0\0\0"


def test_job_without_an_end_is_buried_and_the_others_are_worked_off(play, work):
    """What a beanstalkd that was killed may hand out; whoever reserves it has to close the connection."""
    played = play(
        {
            "reserve-with-timeout": [RUINED, b"RESERVED 8 2\r\nok\r\n", b"TIMED_OUT\r\n"],
            "reserve-job": RUINED,
            "bury": b"BURIED\r\n",
        }
    )
    done = []
    worker = work(lambda job: done.append(job.body), played.uri, auto_delete=True)
    wait_until(lambda: done and worker.errors)
    assert done == [b"ok"]
    assert [line for line in played.lines if line.split()[1:2] == [b"7"]] == [b"reserve-job 7", b"bury 7 4294967295"]
    ((error, message),) = worker.errors
    assert isinstance(error, gstalk.ProtocolError)
    assert message == f"reserve at {played.uri} failed; job 7 has no end, the server has ruined it: buried"


@pytest.mark.parametrize(
    "again", [b"RESERVED 7 3\r\nabc\r\n", b"NOT_FOUND\r\n", b"RESERVED 9 3\r\n\0\0\0\0\0", b"RESERVED 7 3\r\n\0", CUT]
)
def test_job_without_an_end_is_left_alone_if_it_has_one_when_asked_again(play, work, again):
    played = play({"reserve-with-timeout": [RUINED, b"TIMED_OUT\r\n"], "reserve-job": again})
    worker = work(lambda job: None, played.uri, conn_timeout=0.5)
    wait_until(lambda: worker.errors)
    assert played.count("bury") == 0
    assert [message for _, message in worker.errors] == [f"reserve at {played.uri} failed"]


def test_job_without_an_end_after_a_restart_is_left_alone(play, work):
    """Its id may be another job's."""
    ids = [b"OK 10\r\n---\nid: %d\n\r\n" % life for life in (1, 2)]
    played = play({"stats": ids, "reserve-with-timeout": [RUINED, b"TIMED_OUT\r\n"], "reserve-job": RUINED})
    worker = work(lambda job: None, played.uri)
    wait_until(lambda: worker.errors)
    assert played.count("reserve-job") == played.count("bury") == 0


def test_job_that_a_real_server_has_ruined_is_buried(tmp_path, work, connect):
    with Beanstalkd(binlog=str(tmp_path)) as server:
        conn = connect(server.uri)
        ruined, good = (conn.put("ruins", body, priority=n) for n, body in enumerate([b"to be ruined", b"good"]))
        server.kill()
        (place,) = [path for path in tmp_path.glob("binlog.*") if b"to be ruined" in path.read_bytes()]
        place.write_bytes(place.read_bytes().replace(b"to be ruined\r\n", bytes(14)))
        server.start()
        done = []
        worker = work(lambda job: done.append(job.id), server.uri, "ruins", auto_delete=True)
        wait_until(lambda: done and worker.errors)
        assert done == [good]
        assert state(connect(server.uri), ruined) == "buried"
        worker.stop()


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


def test_deadline_soon_is_no_error_and_asks_little(own_server, work, connect):
    conn = connect(own_server.uri)
    done = []

    def handler(job):
        gevent.sleep(0.9)
        job.delete()
        done.append(job.id)

    conn.put("t", b"", ttr=1)
    worker = work(handler, own_server.uri, "t")
    wait_until(lambda: done)
    assert worker.errors == []
    assert int(conn.stats().cmd_reserve_with_timeout or 0) < 60


def test_job_whose_connection_is_held_comes_through_another(work, conn, tube):
    """While a handler holds a job on the only connection, other jobs are still taken quickly."""
    gate, quick = Event(), []

    def handler(job):
        if job.body == b"slow":
            gate.wait()
        else:
            quick.append(time.monotonic())
        job.delete()

    work(handler)
    conn.put(tube, b"slow")
    wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 1)
    gevent.sleep(0.3)
    began = time.monotonic()
    conn.put(tube, b"quick")
    wait_until(lambda: quick)
    assert quick[0] - began < 0.05 + 1
    gate.set()


# -- several servers ---------------------------------------------------------------------------------------------


def test_several_servers_all_are_worked_off_one_of_them_down(work, own_server, server, conn, tube):
    with Beanstalkd() as third:
        own_server.kill()
        got = []

        def handler(job):
            job.delete()
            got.append(job.uri)

        work(handler, [server.uri, own_server.uri, third.uri])
        with gstalk.dial(third.uri) as other:
            conn.put_many(tube, [b""] * 50)
            other.put_many(tube, [b""] * 50)
            wait_until(lambda: len(got) == 100)
            assert got.count(server.uri) == 50


@pytest.mark.slow
def test_several_servers_one_busy_does_not_starve_the_other(work, own_server, server, connect, conn, tube):
    other = connect(own_server.uri)
    got: list[tuple[str, float]] = []

    def handler(job):
        gevent.sleep(0.02)
        job.delete()
        got.append((job.uri, time.monotonic()))

    conn.put_many(tube, [b""] * 600)
    work(handler, [server.uri, own_server.uri], num_greenlets=4)
    wait_until(lambda: len(got) > 20)
    began = time.monotonic()
    other.put(tube, b"")
    wait_until(lambda: own_server.uri in [uri for uri, _ in got])
    assert next(when for uri, when in got if uri == own_server.uri) - began < 1.5


# -- idleness ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("multiply", [1, 3])
def test_idle_consumer_sends_nothing(own_server, work, connect, multiply):
    conn = connect(own_server.uri)
    worker = work(lambda job: job.delete(), own_server.uri, "t", multiply=multiply)
    wait_until(lambda: conn.stats().current_connections == multiply + 1 and conn.stats().current_waiting)
    conn.put("t", b"")
    wait_until(lambda: conn.stats().current_jobs_ready == conn.stats().current_jobs_reserved == 0)
    gevent.sleep(0.2)
    before = conn.stats()
    gevent.sleep(2)  # nothing is to happen: there is no event to wait for
    after = conn.stats()
    changed = {
        name: (value, getattr(after, name))
        for name, value in vars(before).items()
        if name.startswith("cmd_") and getattr(after, name) != value
    }
    assert changed == {"cmd_stats": (before.cmd_stats, int(before.cmd_stats or 0) + 1)}
    assert after.total_connections == before.total_connections
    assert worker.errors == []


@pytest.mark.timing
@pytest.mark.slow
def test_idle_consumer_gets_a_job_at_once(own_server, work, connect):
    conn = connect(own_server.uri)
    times: list[float] = []
    handled = Event()
    began = 0.0

    def handler(job):
        times.append(time.monotonic() - began)
        job.delete()
        handled.set()

    work(handler, own_server.uri, "t")
    wait_until(lambda: conn.stats().current_waiting == 1)
    for _ in range(50):
        handled.clear()
        began = time.monotonic()
        conn.put("t", b"")
        assert handled.wait(5)
        wait_until(lambda: conn.stats().current_waiting == 1)
    assert sorted(times)[25] < 0.02


@pytest.mark.slow
def test_idle_longer_than_reserve_timeout_goes_on(own_server, work, connect):
    conn = connect(own_server.uri)
    got: list[gstalk.Job] = []
    worker = work(got.append, own_server.uri, "t", reserve_timeout=1, auto_delete=True)
    wait_until(lambda: int(conn.stats().cmd_reserve_with_timeout or 0) >= 3)
    conn.put("t", b"")
    wait_until(lambda: got)
    assert worker.errors == []


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
