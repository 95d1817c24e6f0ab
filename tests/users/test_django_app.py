"""The Django example: its request, its management command, and what the database connections of a worker become."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytest.importorskip("django")

pytestmark = pytest.mark.real

APP = Path(__file__).parents[2] / "examples" / "django_app"

BEGIN = """
import django, os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
import gevent, gstalk
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
call_command("migrate", run_syncdb=True, verbosity=0)
from letters import jobs
from letters.models import Letter
"""
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"

# The request, as Django's own client makes it: one letter is refused, two are written down, and their jobs put.
POST = """
from django.test import Client
print([Client().post("/letters/", {"to": to}).status_code for to in ("ann", "", "bob")])
"""

# Two greenlets, each in a transaction: is it the same connection?
SHARED = """
seen = []
both = gevent.event.Event()

def work():
    with transaction.atomic():
        seen.append(connection.connection)
        if len(seen) == 2:
            both.set()
        both.wait()

gevent.joinall([gevent.spawn(work), gevent.spawn(work)])
print("connections:", len(set(map(id, seen))))
"""

# A handler at work in a Consumer of one greenlet, which breaks its connection at its first job. SQLite's backend calls
# all connections usable; PostgreSQL's and MySQL's ask.
BROKEN = """
def is_usable(self):
    try:
        self.connection.execute("SELECT 1")
    except Exception:
        return False
    return True

type(connections["default"]).is_usable = is_usable

def handler(job):
    try:
        if job.body == b"0":
            connection.ensure_connection()
            connection.connection.close()  # as if the database had been restarted
        Letter.objects.count()
        said.append("well")
    except Exception as error:
        said.append("failed")
    job.delete()
    if job.body == b"2":
        consumer.stop()

for around in (jobs.fresh, lambda handler: handler):
    said = []
    jobs.producer.put_many("letters", [b"0", b"1", b"2"])
    consumer = gstalk.Consumer(os.environ["BEANSTALKD_URI"], "letters", num_greenlets=1)
    consumer.receive(around(handler))
    print(*said)
"""

UNPATCHED = """
try:
    call_command("work")
except CommandError as error:
    print(error)
"""


@pytest.fixture
def run(own_server: Beanstalkd, tmp_path: Path) -> Callable[[str], str]:
    """Run a program with a database of its own."""
    env = {
        **os.environ,
        "BEANSTALKD_URI": own_server.uri,
        "DATABASE": str(tmp_path / "letters.sqlite3"),
        "CONN_MAX_AGE": "600",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(program: str) -> str:
        command = [sys.executable, "-c", program + "\njobs.producer.stop()"]
        done = subprocess.run(command, cwd=APP, env=env, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    return run


def letters(place: Path) -> list[Any]:
    database = sqlite3.connect(place / "letters.sqlite3")
    try:
        return database.execute("SELECT id, sent_at IS NOT NULL FROM letters_letter ORDER BY id").fetchall()
    finally:
        database.close()


def test_request_puts_after_its_commit_and_the_command_works_off(run, own_server, tmp_path):
    assert run(BEGIN + POST) == "[201, 400, 201]\n"
    written = [key for key, _ in letters(tmp_path)]
    assert len(written) == 2
    with gstalk.dial(own_server.uri) as conn:
        assert conn.stats_tube("letters").current_jobs_ready == 2
        conn.put("letters", b"%d" % written[0])  # a job may come twice
        conn.put("letters", b"1000")  # or for a letter that is gone
        env = {**os.environ, "BEANSTALKD_URI": own_server.uri, "DATABASE": str(tmp_path / "letters.sqlite3")}
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "work", "--greenlets", "1"],
            cwd=APP, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_until(lambda: conn.stats().cmd_delete == 4, 30)
            worker.terminate()
            said, errors = worker.communicate(timeout=20)
        finally:
            worker.kill()
            worker.wait()
    assert (worker.returncode, errors) == (0, "")
    assert said == "sending a letter to ann\nsending a letter to bob\n"
    assert letters(tmp_path) == [(key, 1) for key in written]


def test_patched_greenlets_have_a_connection_each_and_a_broken_one_costs_one_job(run):
    """Where old connections aren't closed around a job, it costs all jobs of its greenlet."""
    said = run(PATCH + BEGIN + SHARED + BROKEN)
    assert said == "connections: 2\nfailed well well\nfailed failed failed\n"


def test_unpatched_greenlets_share_a_connection_and_so_the_command_refuses(run):
    shared, refusal = run(BEGIN + SHARED + UNPATCHED).splitlines()
    assert shared == "connections: 1"
    assert refusal == "the program must be patched before Django is imported, as manage.py does"
