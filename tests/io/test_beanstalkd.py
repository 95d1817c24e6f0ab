"""The launcher of the real beanstalkd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port

pytestmark = pytest.mark.real
ROOT = Path(__file__).parent.parent.parent

LEFT_RUNNING = """
{patch}
from gstalk.testing import Beanstalkd
server = Beanstalkd()
server.start()
{before}
print(server.pid, flush=True)
"""


def say(server: Beanstalkd, data: bytes, wait: float = 5) -> bytes:
    """What it answers, in one read."""
    place: Any = server.uri.removeprefix("unix://")
    family = socket.AF_UNIX if server.uri.startswith("unix:") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(wait)
        sock.connect(place if family == socket.AF_UNIX else ("127.0.0.1", server.port))
        sock.sendall(data)
        return bytes(sock.recv(65536))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("unix", [False, True])
def test_it_runs_while_the_block_does(unix):
    with Beanstalkd(unix=unix) as server:
        pid = server.pid
        assert say(server, b"put 0 0 60 0\r\n\r\n") == b"INSERTED 1\r\n"
    assert not is_running(pid)
    assert not unix or not os.path.exists(os.path.dirname(server.uri.removeprefix("unix://")))


@pytest.mark.parametrize("unix", [False, True])
def test_restart_begins_anew_in_the_same_place(unix):
    with Beanstalkd(unix=unix) as server:
        uri, pid = server.uri, server.pid
        say(server, b"put 0 0 60 0\r\n\r\n")
        server.restart()
        assert (server.uri, server.pid == pid) == (uri, False)
        assert say(server, b"put 0 0 60 0\r\n\r\n") == b"INSERTED 1\r\n"


def test_binlog_keeps_jobs_across_a_kill(tmp_path):
    with Beanstalkd(binlog=str(tmp_path)) as server:
        say(server, b"put 0 0 60 3\r\nabc\r\n")
        server.kill()
        with pytest.raises(OSError):
            say(server, b"stats\r\n")
        server.start()
        assert say(server, b"peek 1\r\n") == b"FOUND 1 3\r\nabc\r\n"


def test_arguments_are_passed_on():
    with Beanstalkd("-z", "10") as server:
        assert say(server, b"put 0 0 60 11\r\n12345678901\r\n") == b"JOB_TOO_BIG\r\n"


def test_many_refused_puts_do_not_stop_it():
    """It complains on stderr about each; a pipe that nobody reads would fill up and block it."""
    with Beanstalkd() as server:
        server.drain()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            for _ in range(30):
                sock.sendall(b"put 0 0 60 0\r\n\r\n" * 200)
                got = b""
                while len(got) < 200 * len(b"DRAINING\r\n"):
                    got += sock.recv(65536)


def test_paused_it_says_nothing_until_resumed():
    with Beanstalkd() as server:
        server.pause()
        with pytest.raises(TimeoutError):
            say(server, b"list-tube-used\r\n", wait=0.1)
        server.resume()
        assert say(server, b"list-tube-used\r\n") == b"USING default\r\n"
        server.pause()  # and a stopped one can be ended


def test_fault_at_the_start_is_told_with_its_words():
    with pytest.raises(RuntimeError, match="beanstalkd did not start: .*unknown flag: --nonsense"):
        Beanstalkd("--nonsense").start()


def test_environment_names_the_program(monkeypatch):
    monkeypatch.setenv("GSTALK_BEANSTALKD", "/bin/sh")
    assert Beanstalkd.find() == "/bin/sh"


def test_no_program_is_told(monkeypatch):
    monkeypatch.setenv("GSTALK_BEANSTALKD", "/nowhere/beanstalkd")
    assert Beanstalkd.find() is None
    with pytest.raises(FileNotFoundError, match="no beanstalkd on this machine"):
        Beanstalkd().start()


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
def test_program_that_forgets_it_takes_it_along(patch):
    code = LEFT_RUNNING.format(patch=patch, before="")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert done.stderr == ""
    assert not is_running(int(done.stdout))


@pytest.mark.slow
def test_fork_that_ends_leaves_it_to_its_parent():
    before = "import os, sys\nif os.fork() == 0: sys.exit()\nos.wait(); assert server._answers()"
    code = LEFT_RUNNING.format(patch="", before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert done.stderr == ""
    assert not is_running(int(done.stdout))


def test_processes_side_by_side_have_ports_of_their_own(monkeypatch):
    """One's server may be down for a moment: its port is not to be taken by the other's."""
    ports: list[set[int]] = []
    for pid in (4242, 4243):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        ports.append({free_port() for _ in range(300)})
    assert ports[0].isdisjoint(ports[1])
    assert all(len(each) > 100 for each in ports)
    assert all(10_240 <= port < 32_768 for each in ports for port in each)


def test_process_that_shares_its_ports_does_not_begin_with_the_same_one():
    code = "import random; random.seed(1); from gstalk.testing.beanstalkd import _turns; print(next(_turns))"
    first = {subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) for _ in range(4)}
    assert len(first) > 1  # one chance in eight million that it isn't


def test_two_run_side_by_side():
    with Beanstalkd() as one, Beanstalkd() as two:
        assert one.port != two.port
        assert say(two, b"list-tube-used\r\n") == b"USING default\r\n"
