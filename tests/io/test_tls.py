"""TLS, against a real terminator (haproxy) in front of a real beanstalkd."""

from __future__ import annotations

import importlib.util
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

import gstalk
from gstalk.testing import FaultProxy
from tests.servers import Terminator, wait_until

pytestmark = [pytest.mark.real, pytest.mark.limit(90)]


@pytest.fixture
def secure(terminator, trusting, connect, tube):
    """Dial the good frontend, watching the test's tube alone."""

    def dial(name="good", **options):
        conn = connect(terminator.uri(name), tls_context=trusting, **options)
        conn.watch(tube)
        conn.ignore("default")
        return conn

    return dial


# -- who is let in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tls", "beanstalks"])
def test_tls_with_the_ca_connects(terminator, trusting, connect, server, scheme):
    conn = connect(terminator.uri("good", scheme=scheme), tls_context=trusting)
    assert conn.stats().pid == server.pid
    assert conn.uri == terminator.uri("good", scheme=scheme)


@pytest.mark.parametrize("name", ["good", "self-signed"])
def test_tls_by_default_an_unknown_ca_is_refused(terminator, name):
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(terminator.uri(name))
    assert caught.value.sent == "no"
    assert "certificate" in str(caught.value)
    assert terminator.uri(name) in str(caught.value)


@pytest.mark.parametrize("name", ["self-signed", "wrong-host", "expired"])
def test_tls_with_the_ca_a_bad_certificate_is_refused(terminator, trusting, name):
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(terminator.uri(name), tls_context=trusting)
    assert "certificate" in str(caught.value)


def test_tls_certificate_for_a_name_is_refused_by_address_and_the_other_way_round(terminator, trusting, connect):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(terminator.uri("good", "127.0.0.1"), tls_context=trusting)
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(terminator.uri("by-address"), tls_context=trusting)
    connect(terminator.uri("by-address", "127.0.0.1"), tls_context=trusting).stats()


def test_tls_server_name_is_sent(terminator, trusting, connect):
    """This frontend refuses a handshake whose server name isn't its certificate's."""
    connect(terminator.uri("by-name"), tls_context=trusting).stats()


@pytest.fixture
def looked_up(monkeypatch) -> list[str]:
    """Every name stands for this machine; what was asked for."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def ask(host: str, port: int, *more: Any, **keywords: Any) -> Any:
        asked.append(host)
        return look_up("127.0.0.1", port, *more, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return asked


@pytest.mark.parametrize("host", ["localhost.", "LocalHost", "LOCALHOST.", "under_score.example", "a.wild.example."])
@pytest.mark.parametrize("place", ["good", "by-name"])
def test_tls_name_is_looked_up_as_written_and_checked_without_its_dot(
    terminator, trusting, connect, looked_up, host, place
):
    """An absolute name's dot is the resolver's: no certificate has one, and this frontend knows no name with one."""
    conn = connect(terminator.uri(place, host), tls_context=trusting)
    conn.stats()
    assert looked_up == [host]
    assert conn.uri == terminator.uri(place, host)


@pytest.mark.parametrize("host", ["elsewhere.", "b.a.wild.example.", "wild.example."])
def test_tls_absolute_name_that_is_not_the_certificates_is_refused(terminator, trusting, looked_up, host):
    with pytest.raises(gstalk.ConnectError, match="certificate refused: hostname mismatch"):
        gstalk.dial(terminator.uri("good", host), tls_context=trusting)


@pytest.mark.parametrize("host", ["localhost.", "LOCALHOST."])
def test_plain_name_is_looked_up_as_written(server, connect, looked_up, host):
    connect(f"{host}:{server.port}").stats()
    assert looked_up == [host]


def test_tls_context_that_checks_nothing_is_the_users_choice(terminator, connect):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connect(terminator.uri("self-signed"), tls_context=context).stats()


def test_tls_client_certificate_is_asked_for_and_given(terminator, trusting, certificates, connect):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(terminator.uri("client"), tls_context=trusting)
    trusting.load_cert_chain(str(certificates / "client.pem"))
    connect(terminator.uri("client"), tls_context=trusting).stats()


def test_tls_12_connects_and_less_than_the_contexts_least_is_refused(terminator, trusting, connect):
    connect(terminator.uri("tls12"), tls_context=trusting).stats()
    trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(terminator.uri("tls12"), tls_context=trusting)


@pytest.mark.slow
def test_tls_to_a_plain_server_raises_connect_error_in_time(server, trusting):
    began = time.monotonic()
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(f"tls://localhost:{server.port}", tls_context=trusting, conn_timeout=1)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_plain_to_a_tls_server_raises_connect_error_in_time(terminator):
    began = time.monotonic()
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(terminator.uri("good", scheme="beanstalk"), conn_timeout=1)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_tls_with_a_context_for_servers_raises_connect_error(terminator):
    with pytest.raises(gstalk.ConnectError, match="TLS") as caught:
        gstalk.dial(terminator.uri("good"), tls_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_tls_handshake_that_is_never_answered_raises_connect_error_in_time(trusting):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(gstalk.ConnectError, match="no answer within"):
            gstalk.dial(f"tls://localhost:{silent.getsockname()[1]}", tls_context=trusting, conn_timeout=0.3)


def test_tls_without_a_terminator_behind_it_raises_connect_error(terminator, trusting, own_server, certificates):
    """The handshake succeeds, and then nobody answers: that isn't connected."""
    own_server.kill()
    alone = Terminator(certificates, own_server.port)
    alone.start()
    try:
        with pytest.raises(gstalk.ConnectError):
            gstalk.dial(alone.uri("good"), tls_context=trusting)
    finally:
        alone.kill()


# -- commands ----------------------------------------------------------------------------------------------------


def test_tls_many_greenlets_each_gets_its_own_reply(secure, tube):
    conn = secure()

    def work(number):
        for turn in range(10):
            body = b"%d-%d" % (number, turn)
            job_id = conn.put(f"{tube}-{number % 3}", body)
            assert conn.peek(job_id).body == body
            conn.delete(job_id)

    gevent.joinall([gevent.spawn(work, number) for number in range(50)], raise_error=True)


def test_tls_put_many_arrive_in_order(secure, other, tube):
    ids = secure().put_many(tube, [b"%d" % number for number in range(5000)])
    assert ids == sorted(ids)
    assert other.peek(ids[4321]).body == b"4321"


def test_tls_large_bodies_both_ways(secure, tube):
    conn = secure()
    bodies = [bytes([number]) * (65535 - number) for number in range(40)]
    putters = [gevent.spawn(conn.put, tube, body) for body in bodies]
    gevent.joinall(putters, raise_error=True)
    for body in bodies:
        job = conn.reserve_with_timeout(5)
        assert job.body == body
        job.delete()


def test_tls_counts_what_was_sent_as_its_commands_do(secure, tube):
    conn = secure()
    conn.put(tube, b"x")
    assert conn._connection.pipe.sent == conn._connection.pipe._appended


def test_tls_that_sent_the_rest_while_it_read_has_room_again(terminator, trusting, tube):
    with FaultProxy(("127.0.0.1", terminator.ports["good"])) as proxy:
        uri = proxy.uri.replace("beanstalk://127.0.0.1", "tls://localhost")
        with gstalk.dial(uri, tls_context=trusting, conn_timeout=30) as conn:
            pipe = conn._connection.pipe
            proxy.stall("up")
            large = gevent.spawn(conn.put, tube, b"x" * 10_000_000)
            wait_until(lambda: pipe._progress.is_blocked)
            pipe._writer.stop()
            proxy.resume("up")
            with gevent.Timeout(20):
                while pipe._transport is not None and pipe._transport._backlog:
                    pipe._on_readable()
                    gevent.sleep(0.001)
            pipe._writer.start(pipe._on_writable)
            with pytest.raises(gstalk.JobTooBigError):
                large.get(timeout=10)
            with gevent.Timeout(10):
                conn.put(tube, b"next")


def test_tls_waiting_reserve_gets_its_job(secure, other, tube):
    reserver = gevent.spawn(secure().reserve)
    wait_until(lambda: other.stats_tube(tube).current_waiting == 1)
    job_id = other.put(tube, b"x")
    assert reserver.get(timeout=5).id == job_id


def test_tls_put_beside_a_waiting_reserve_dials_once_and_both_succeed(secure, other, tube):
    conn = secure()
    for _ in range(3):
        reserver = gevent.spawn(conn.reserve)
        gevent.sleep(0.02)
        job_id = conn.put(tube, b"x")
        job = reserver.get(timeout=5)
        assert job.id == job_id
        job.delete()


def test_tls_producers_and_workers_on_one_conn_lose_and_double_nothing(secure, other, tube):
    conn = secure()
    got: list[int] = []

    def work():
        while (job := conn.reserve()).body != b"end":
            got.append(job.id)
            job.delete()
        job.delete()

    workers = [gevent.spawn(work) for _ in range(10)]
    ids = conn.put_many(tube, [b"x"] * 300)
    wait_until(lambda: len(got) == 300)
    conn.put_many(tube, [b"end"] * 10)
    gevent.joinall(workers, timeout=20, raise_error=True)
    assert sorted(got) == ids


def test_tls_reserve_interrupted_a_later_job_goes_to_others(secure, other, tube):
    conn = secure()
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.05):
            conn.reserve()
    job_id = other.put(tube, b"x", priority=9)
    job = other.reserve_with_timeout(5)
    assert (job.id, job.stats().pri) == (job_id, 9)
    assert conn.reserve_with_timeout(0) is None


def test_tls_interrupted_put_is_carried_out_and_the_next_reply_is_its_own(secure, tube):
    conn = secure()
    putter = gevent.spawn(conn.put, tube, b"interrupted")
    gevent.sleep(0)
    putter.kill()
    assert conn.peek(conn.put(tube, b"next")).body == b"next"
    assert conn.stats_tube(tube).current_jobs_ready == 2


def test_tls_close_waits_for_a_delete_and_gives_the_rest_back(secure, other, tube):
    conn = secure()
    done, kept = (conn.reserve_job(other.put(tube, b"x")) for _ in range(2))
    deleter = gevent.spawn(done.delete)
    gevent.sleep(0)
    conn.close()
    deleter.get()
    assert other.peek(done.id) is None
    wait_until(lambda: other.stats_job(kept.id).state == "ready")


# -- cuts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tls_connection_that_the_terminator_cuts_while_idle_is_noticed(secure):
    conn = secure("idle")
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.stats()
    assert caught.value.sent == "no"


def test_tls_terminator_killed_raises_lost_and_a_dial_afterwards_connects(terminator, secure, tube):
    conn = secure()
    reserver = gevent.spawn(conn.reserve)
    gevent.sleep(0.05)
    terminator.kill()
    try:
        with pytest.raises(gstalk.ConnectionLostError):
            reserver.get(timeout=5)
        assert not conn.is_connected
    finally:
        terminator.start()
    secure().put(tube, b"x")


# -- pools -------------------------------------------------------------------------------------------------------


def test_tls_producer_and_consumer(terminator, trusting, tube):
    config = gstalk.Config(tls_context=trusting, auto_delete=True)
    done = []
    consumer = gstalk.Consumer(terminator.uri("good"), tube, config)
    with gstalk.Producer(terminator.uri("good"), config) as producer:
        receiver = gevent.spawn(consumer.receive, lambda job: done.append(job.id))
        ids = producer.put_many(tube, [b"x"] * 300)
        wait_until(lambda: len(done) == 300)
        consumer.stop()
        receiver.get(timeout=10)
    assert sorted(done) == ids


def test_tls_consumer_watches_and_ignores_while_it_waits_in_a_reserve(terminator, trusting, conn, tube):
    done: list[bytes] = []

    def handler(job: gstalk.Job) -> None:
        job.delete()
        done.append(job.body)

    one, two = f"{tube}-a", f"{tube}-b"
    consumer = gstalk.Consumer(terminator.uri("good"), one, tls_context=trusting)
    receiver = gevent.spawn(consumer.receive, handler)
    assert consumer.wait_connected(5)
    wait_until(lambda: conn.stats_tube(one).current_waiting == 1)
    consumer.watch(two)
    consumer.ignore(one)
    left = conn.put(one, b"left")
    conn.put(two, b"done")
    wait_until(lambda: done == [b"done"])
    wait_until(lambda: conn.stats_job(left).state == "ready")
    conn.delete(left)
    consumer.stop()
    receiver.get(timeout=10)


def test_tls_producer_bad_certificate_is_an_outage_with_its_cause(terminator):
    errors: list[BaseException] = []
    uri = terminator.uri("self-signed")
    with gstalk.Producer(uri, error_func=lambda error, message: errors.append(error)) as producer:
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            producer.put("t", b"x", timeout=0.5)
    assert caught.value.sent == "no"
    assert "certificate" in str(caught.value.causes[uri])
    assert len(errors) == 1


def test_tls_example_runs(terminator, certificates):
    path = Path(__file__).parents[2] / "examples" / "tls.py"
    spec = importlib.util.spec_from_file_location("tls_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(terminator.uri("client"), str(certificates / "ca.crt"), str(certificates / "client.pem"))
