"""Jobs that a killed beanstalkd has cut short: they are buried, and the others worked off."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

import gstalk
from gstalk.connection.damaged_job import bury_ruined
from gstalk.testing import Beanstalkd
from gstalk.uri import parse_uri
from tests.io.working import state
from tests.servers import CUT, ok, wait_until

pytestmark = pytest.mark.real


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


@pytest.mark.parametrize("said", [b"RESERVED 7 9999999999\r\n", b"R" * 300])
def test_job_that_is_said_to_be_larger_than_any_or_without_a_line_is_not_read(play, said):
    def handle(sock: Any, address: object) -> None:
        sock.recv(1000)
        sock.sendall(ok("---\nid: 4a\n"))
        sock.recv(1000)
        sock.sendall(said)
        sock.recv(1000)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        address = parse_uri(f"127.0.0.1:{server.server_port}")
        with gevent.Timeout(10):
            assert not bury_ruined(gevent.get_hub(), address, gstalk.Config(conn_timeout=30), "4a", 7)
    finally:
        server.stop(0)


def test_job_whose_server_goes_while_it_is_asked_about_is_left_alone(play):
    def handle(sock: Any, address: object) -> None:
        while data := sock.recv(1000):
            if not data.startswith(b"stats"):
                sock.sendall(b"RESERVED 7 300\r\nab")
                return
            sock.sendall(ok("---\nid: 4a\n"))

    gone = play()
    gone.close()
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        for uri in (gone.uri, f"127.0.0.1:{server.server_port}"):
            config = gstalk.Config(conn_timeout=30)
            with gevent.Timeout(10):
                assert not bury_ruined(gevent.get_hub(), parse_uri(uri), config, "4a", 7)
    finally:
        server.stop(0)
