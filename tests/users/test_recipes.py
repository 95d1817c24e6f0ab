"""What the recipes among the examples do where things go wrong; tests/test_examples.py runs each where all is well."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port
from tests.servers import wait_until

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program: str, *args: str) -> str:
    """Run a program in a process of its own, in the folder of the examples."""
    command = [sys.executable, "-c", program, *args]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


# -- times -------------------------------------------------------------------------------------------------------

FRIDAY = datetime(2026, 1, 30, 12, 10, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("line", "expected"),
    {
        "* * * * *": "2026-01-30 12:11",
        "*/5 * * * *": "2026-01-30 12:15",
        "10 * * * *": "2026-01-30 13:10",  # not the minute that has begun
        "0,40 12-13 * * *": "2026-01-30 12:40",
        "30 3 * * 1-5": "2026-02-02 03:30",
        "0 9 1 1,4,7,10 *": "2026-04-01 09:00",
        "0 0 31 * *": "2026-01-31 00:00",
        "0 0 29 2 *": "2028-02-29 00:00",
        "0 12 13 * 1": "2026-02-02 12:00",  # a Monday, or a thirteenth
        "0 12 * * 0": "2026-02-01 12:00",
        "0 12 * * 7": "2026-02-01 12:00",
        "59 23 31 12 *": "2026-12-31 23:59",
    }.items(),
)
def test_crontab_line_is_due_when_cron_would_run_it(line, expected):
    assert f"{recipe('crontab').next_run(line, FRIDAY):%Y-%m-%d %H:%M}" == expected


def test_date_without_a_zone_is_refused_and_one_with_a_zone_is_a_moment():
    until = recipe("delayed").until
    with pytest.raises(ValueError, match="no zone"):
        until(datetime(2030, 1, 1))
    here = datetime.now(timezone(timedelta(hours=5))) + timedelta(minutes=10)
    assert timedelta(minutes=9) < until(here) <= timedelta(minutes=10)
    assert until(FRIDAY - timedelta(days=20000)) == timedelta()


# -- bodies ------------------------------------------------------------------------------------------------------


def test_sealed_body_that_would_fill_the_memory_is_buried():
    pytest.importorskip("cryptography")
    from cryptography.fernet import Fernet, MultiFernet

    module = recipe("sealed_bodies")
    keys = MultiFernet([Fernet(Fernet.generate_key())])
    assert module.unseal(keys, module.seal(keys, bytes(1_000_000))) == bytes(1_000_000)
    for bad in (zlib.compress(bytes(1_000_001)), b"not compressed", zlib.compress(b"cut short")[:-1]):
        with pytest.raises(gstalk.Bury):
            module.unseal(keys, keys.encrypt(bad))


def test_claim_check_keeps_a_body_once_and_gives_it_back_as_often_as_asked(tmp_path, server, tube, conn):
    module = recipe("claim_check")
    store = module.Store(tmp_path)
    large = bytes(200_000)
    with gstalk.Producer(server.uri) as producer:
        for body in (large, large, b"@small"):
            module.put(producer, store, tube, body)
    jobs = [conn.reserve() for _ in range(3)]
    assert [module.body_of(store, job) for job in jobs] == [large, large, b"@small"]
    assert len(list(tmp_path.iterdir())) == 1
    for job in jobs:
        job.delete()


# -- workers -----------------------------------------------------------------------------------------------------


def test_breaker_opens_at_the_first_failure_after_a_pause_and_closes_at_a_success(server, tube, conn):
    conn.put(tube, b"")  # so that there is such a tube
    answers: list[Exception | None] = []
    released: list[int] = []

    def work(job: object) -> None:
        if error := answers.pop(0):
            raise error

    module = recipe("circuit_breaker")
    breaker = module.Breaker(work, tube, failures=2, pause=60)

    def handle(answer: Exception | None) -> tuple[int, int | None]:
        answers.append(answer)
        breaker.handle(SimpleNamespace(uri=server.uri, release=lambda: released.append(1)))
        return len(released), conn.stats_tube(tube).cmd_pause_tube

    down = module.DownError("no answer")
    for error in (down, KeyError("the job's own"), gstalk.ConnectionLostError("the queue's", sent="no")):
        with pytest.raises(type(error)):
            handle(error)
    assert handle(down) == (1, 1)  # the second in a row
    assert handle(down) == (2, 2)
    assert handle(None) == (2, 2)
    with pytest.raises(module.DownError):
        handle(down)
    conn.pause_tube(tube, 0)
    conn.reserve().delete()


def test_batch_that_fails_fails_all_its_jobs_and_no_other(server, tube, conn):
    batches: list[int] = []
    errors: list[str] = []

    def work(jobs: list[gstalk.Job]) -> None:
        batches.append(len(jobs))
        if len(batches) == 1:
            raise LookupError("a row is wrong")

    conn.put_many(tube, [b"row"] * 4)
    consumer = gstalk.Consumer(
        server.uri,
        tube,
        num_greenlets=3,
        retry=gstalk.RetryPolicy(first_delay=0),
        error_func=lambda error, message: errors.append(str(error)),
    )
    batches_of_3 = recipe("batches").Batches(work, 3, 0.1)
    receiving = gevent.spawn(consumer.receive, batches_of_3.handle)
    wait_until(lambda: conn.stats_tube(tube).cmd_delete == 4)
    consumer.stop()
    receiving.get()
    assert batches[0] == 3
    assert errors == ["a row is wrong"] * 3
    assert sum(batches) == 3 + 4


def test_unique_job_is_unmarked_where_its_put_failed_and_an_old_mark_is_taken_over(server, own_server):
    module = recipe("unique_jobs")
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE waiting (key TEXT PRIMARY KEY, since REAL)")
    with gstalk.Producer(f"127.0.0.1:{free_port()}", put_timeout=0.01) as nowhere:
        with pytest.raises(gstalk.PutTimeoutError):
            module.put_once(database, nowhere, "page")
    with gstalk.Producer(own_server.uri) as producer:
        assert module.put_once(database, producer, "page") == 1
        assert module.put_once(database, producer, "page") is None
        database.execute("UPDATE waiting SET since = since - ?", (module.OLDEST + 1,))
        assert module.put_once(database, producer, "page") == 2
        assert module.put_once(database, producer, "page") is None
    database.close()


# -- beside others -----------------------------------------------------------------------------------------------

SLOW_HUEY = """
import beside_huey, gevent, os, signal, sys

begun = []

def slow(name):
    begun.append(name)
    if len(begun) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(0.2)
    return name

beside_huey.shrink = beside_huey.huey.task()(slow)
beside_huey.main(sys.argv[1])
print("begun:", len(begun))
"""


def test_sigterm_has_huey_and_gstalk_finish_what_they_have_begun(own_server: Beanstalkd):
    pytest.importorskip("huey")
    said = run(SLOW_HUEY, own_server.uri)
    with gstalk.dial(own_server.uri) as conn:
        stats = conn.stats()
    assert stats.current_jobs_reserved == 0
    assert 2 <= (stats.cmd_delete or 0) <= 10
    assert said.startswith(f"{stats.cmd_delete} pictures")
    assert said.endswith(f"begun: {stats.cmd_delete}\n")


def test_locust_user_tells_of_each_put_and_what_failed(own_server: Beanstalkd, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for locust, which is large; the next test has the real one, where it is."""
    listeners: list[Callable[..., None]] = []
    stand_in: Any = ModuleType("locust")
    stand_in.User = object
    stand_in.constant_throughput = lambda rate: rate
    stand_in.task = lambda function: function
    stand_in.events = SimpleNamespace(quitting=SimpleNamespace(add_listener=listeners.append))
    monkeypatch.setitem(sys.modules, "locust", stand_in)
    module = recipe("locustfile")
    told: list[Any] = []
    request = SimpleNamespace(fire=lambda **what: told.append(what))
    user = module.Putter()
    user.environment = SimpleNamespace(events=SimpleNamespace(request=request))
    user.host = own_server.uri
    user.on_start()
    user.put()
    own_server.drain()
    user.put()
    listeners[0](environment=None)
    assert [(each["name"], type(each["exception"]).__name__) for each in told] == [
        ("load", "NoneType"),
        ("load", "DrainingError"),
    ]
    assert not user.producer.is_connected


@pytest.mark.slow
def test_locust_puts(own_server: Beanstalkd):
    pytest.importorskip("locust")
    command = [sys.executable, "-m", "locust", "-f", "locustfile.py", "--headless", "--users", "5", "--run-time", "2s"]
    done = subprocess.run(
        [*command, "--host", own_server.uri], cwd=EXAMPLES, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    with gstalk.dial(own_server.uri) as conn:
        assert (conn.stats_tube("load").current_jobs_ready or 0) >= 5
