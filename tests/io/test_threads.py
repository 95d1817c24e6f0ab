"""What a thread leaves behind that has put: nothing. In programs of their own, where nothing else is counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

import gstalk
from tests.faults.programs.running import run

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="there is no /proc to count in"),
]

NOISE = 400  # blocks of memory that come and go


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # a name is looked up by threads of gevent's
def test_short_threads_leave_nothing(own_server, connect, many, figures, host):
    count = many(300, 5000)
    uri = own_server.uri.replace("127.0.0.1", host)
    [said] = run("threaded", "short_lived", uri, count, seconds=50 + count / 10)
    figures |= said
    before, after = said["before"], said["after"]
    assert after.pop("blocks") < before.pop("blocks") + NOISE
    assert after == before
    conn = connect(own_server.uri)
    assert conn.stats().current_connections == 1
    assert conn.stats_tube("short").current_jobs_ready == 100 + count


def test_many_threads_at_once_leave_nothing(own_server, many, figures):
    count = many(50, 500)
    [said] = run("threaded", "many_at_once", own_server.uri, count)
    figures |= said
    before, after = said["before"], said["after"]
    assert said["hubs"] - before["hubs"] == count
    assert after.pop("blocks") < before.pop("blocks") + NOISE + 20 * count  # the lists that grew
    assert after == before


def test_pools_of_gevents_threads_leave_nothing(own_server, many, figures):
    count = many(20, 500)
    [said] = run("threaded", "gevents_pools", own_server.uri, count)
    figures |= said
    before, after = said["before"], said["after"]
    assert after.pop("blocks") < before.pop("blocks") + NOISE + 10 * count  # gevent's own
    assert after == before


def test_forks_in_a_threaded_program_leave_each_process_its_own(own_server, connect, many):
    rounds = many(5, 100)
    [said] = run("threaded", "forks", own_server.uri, rounds)
    assert said["codes"] == [0] * (rounds + 1)
    conn = connect(own_server.uri)
    counts = Counter[bytes]()
    for tube in ("parent", "child", "forker"):
        conn.watch(tube)
    while job := conn.reserve_with_timeout(0):
        counts[job.body] += 1
        job.delete()
    expected = Counter({b"x": rounds + 1, b"y": rounds + 1, b"forker": rounds + 1, b"thread": rounds + 1})
    expected.update(b"%d-%d" % (number, each) for number, put in enumerate(said["put"]) for each in range(put))
    assert counts == expected


def test_process_ends_while_threads_that_have_put_wait(own_server):
    assert run("threaded", "ends", own_server.uri) == [4]
    with gstalk.dial(own_server.uri) as conn:
        assert conn.stats().current_connections == 1


LATE = """
import threading, time
import gstalk

def work():
    threading.main_thread().join()
    with gstalk.Producer({uri!r}) as producer:
        print(producer.put("late", b"x") > 0)

threading.Thread(target=work).start()
"""


def test_thread_that_goes_on_after_the_main_threads_end_puts_and_says_nothing_else(server):
    """The interpreter's exit has begun then: what is imported, or made, for the first time may be refused."""
    ran = subprocess.run(
        [sys.executable, "-c", LATE.format(uri=server.uri)], capture_output=True, text=True, timeout=30
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("True\n", "", 0)
