"""Conn: peeks, tubes and statistics, shown against the real beanstalkd, or a played one where it must."""

from __future__ import annotations

import pytest

import gstalk
from tests.io.calling import held
from tests.servers import ok

pytestmark = pytest.mark.real


def test_a_conn_is_made_by_dial_alone():
    with pytest.raises(TypeError, match=r"a Conn is made by gstalk\.dial\(uri\), not by Conn\('localhost:11300'\)"):
        gstalk.Conn("localhost:11300")  # type: ignore[arg-type]


# -- peek, tubes, statistics -------------------------------------------------------------------------------------


def test_peek_finds_a_job_in_any_state_and_none_otherwise(conn, tube):
    job_id = conn.put(tube, b"x")
    job = conn.peek(job_id)
    assert (job.id, job.body, job.tube, job.reserved_at, job.uri) == (job_id, b"x", None, None, conn.uri)
    conn.delete(job_id)
    assert conn.peek(job_id) is None


def test_peek_by_state_finds_the_next_job_of_the_tube(conn, tube):
    assert [peek(tube) for peek in (conn.peek_ready, conn.peek_delayed, conn.peek_buried)] == [None, None, None]
    held(conn, tube, b"buried").bury()
    conn.put(tube, b"ready")
    conn.put(tube, b"delayed", delay=100)
    for state in ("ready", "delayed", "buried"):
        job = getattr(conn, f"peek_{state}")(tube)
        assert (job.body, job.tube, job.reserved_at) == (state.encode(), tube, None)


@pytest.mark.parametrize("name", ["null", "true", "1e5", "0x1F", "1_000", "2001-01-01", ".inf", "123", "+$;()/._"])
def test_tubes_with_names_that_yaml_changes_keep_them(conn, name):
    job_id = conn.put(name, b"")
    assert name in conn.list_tubes()
    assert conn.stats_tube(name).name == name
    assert conn.stats_job(job_id).tube == name
    conn.watch(name)
    assert name in conn.list_tubes_watched()
    conn.delete(job_id)


def test_stats_have_the_servers_values_in_right_types(conn, server):
    stats = conn.stats()
    assert type(stats) is gstalk.ServerStats
    assert stats.pid == server.pid
    assert isinstance(stats.version, str)
    assert isinstance(stats.rusage_utime, float)
    assert stats.draining is False
    assert isinstance(stats.id, str)
    assert isinstance(stats.total_jobs, int)
    assert str(stats.os).startswith("#")


def test_stats_are_frozen(conn):
    with pytest.raises(AttributeError):
        conn.stats().pid = 1


def test_stats_tube_counts(conn, tube):
    conn.put_many(tube, [b""] * 3, priority=5)
    stats = conn.stats_tube(tube)
    assert (stats.name, stats.current_jobs_ready, stats.current_jobs_urgent, stats.total_jobs) == (tube, 3, 3, 3)
    assert stats.current_watching == 1


def test_stats_tube_unknown_raises_not_found(conn):
    with pytest.raises(gstalk.NotFoundError):
        conn.stats_tube("no-such-tube")


def test_stats_of_113_with_quotes_and_unknown_fields(play, connect):
    text = '---\nid: "8a3f"\nversion: "1.13"\nos: "#1 SMP \\"x\\""\ndraining: true\npid: 7\nnew-field: "some"\n'
    stats = connect(play({"stats": ok(text)}).uri).stats()
    assert (stats.id, stats.version, stats.os, stats.draining, stats.pid) == ("8a3f", "1.13", '#1 SMP "x"', True, 7)
    assert stats.extra == {"new-field": "some"}
    assert stats.cmd_put is None


def test_stats_that_are_none_are_a_protocol_error(play, connect):
    conn = connect(play({"stats-tube": ok("pid: 7\n")}).uri)
    with pytest.raises(gstalk.ProtocolError):
        conn.stats_tube("default")
    assert not conn.is_connected


def test_pause_tube_keeps_jobs_back_until_resumed(conn, tube):
    conn.put(tube, b"")
    conn.pause_tube(tube, 99.5)
    assert conn.stats_tube(tube).pause == 100
    assert conn.reserve_with_timeout(0) is None
    conn.pause_tube(tube, 0)
    assert conn.reserve_with_timeout(5) is not None


def test_pause_tube_unknown_raises_not_found(conn):
    with pytest.raises(gstalk.NotFoundError):
        conn.pause_tube("no-such-tube", 1)
