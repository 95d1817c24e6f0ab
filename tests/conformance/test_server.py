"""What the embedded server has beyond the protocol: its clock, its restarts, its patience with slow readers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest
from gevent import socket

from gstalk.testing import Server
from tests.conformance.conftest import Both, Wire
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent.parent
RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/testing.md").read_text(encoding="utf-8"), re.DOTALL)
HELD = b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n"

PATCHED = """
{patch}
import gevent
from gevent import socket
from gstalk.testing import Server
with Server() as server:
    with socket.create_connection(("127.0.0.1", int(server.uri.rpartition(":")[2]))) as sock:
        sock.sendall(b"reserve-with-timeout 9\\r\\n")
        gevent.sleep(0.05)
        server.advance(9)
        print(sock.recv(100))
"""

FIXTURES = """
import sys
assert "gevent" not in sys.modules and "gstalk" not in sys.modules

def test_conn(gstalk_conn, gstalk_server):
    assert gstalk_conn.uri == gstalk_server.uri
    assert gstalk_conn.put("mail", b"hello") == 1

def test_real(beanstalkd):
    assert beanstalkd.port
"""

PATCHING = """
from gevent import monkey
import gevent
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_configure():
    import sys
    assert "gevent.socket" not in sys.modules and "gstalk" not in sys.modules
    monkey.patch_all()
"""

SIDE_BY_SIDE = """
import os
import gevent
import gstalk
import gevent
import pytest

@pytest.mark.parametrize("number", range(8))
def test_servers_of_many_workers(gstalk_conn, beanstalkd, number):
    with gstalk.dial(beanstalkd.uri) as conn:
        assert [each.put("mail", b"") for each in (gstalk_conn, conn)] == [1, 1]
        gevent.sleep(0.1)
        assert [each.stats().total_jobs for each in (gstalk_conn, conn)] == [1, 1]
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def embedded(server: Server) -> Iterator[Both]:
    with closing(Both(server)) as both:
        yield both


@pytest.fixture
def one(embedded: Both) -> Wire:
    return embedded.wire()


def test_advance_carries_out_what_lies_between_in_order(server, embedded, one):
    two = embedded.wire()
    one.say(b"put 0 0 10 0\r\n\r\nreserve\r\n", HELD)
    one.send(b"reserve-with-timeout 60\r\nreserve-with-timeout 0\r\n")
    wait_until(lambda: two.ask(b"stats\r\n")["current-waiting"] == "1")
    server.advance(3600)
    one.expect(b"DEADLINE_SOON\r\nDEADLINE_SOON\r\n")
    assert one.ask(b"stats-job 1\r\n")["timeouts"] == "1"


def test_advance_moves_what_comes_later(server, one):
    server.advance(100)
    one.say(b"put 0 50 60 0\r\n\r\n", b"INSERTED 1\r\n")
    server.advance(49)
    one.say(b"peek-ready\r\n", b"NOT_FOUND\r\n")
    server.advance(1.1)
    one.say(b"peek-ready\r\n", b"FOUND 1 0\r\n\r\n")
    assert int(one.ask(b"stats\r\n")["uptime"]) >= 150


def test_clock_of_the_tests_own_is_the_only_time(server):
    with Server(clock=lambda: 7.0) as frozen, closing(Both(frozen)) as both:
        wire = both.wire()
        wire.say(b"put 0 1 60 0\r\n\r\n", b"INSERTED 1\r\n")
        wire.send(b"reserve\r\n")
        assert wire.silent()
        frozen.advance(1)
        wire.expect(b"RESERVED 1 0\r\n\r\n")


def test_frozen_server_moves_only_by_advance(server, one):
    """Down to the fraction of a second in which it was frozen."""
    one.say(b"put 0 1 60 0\r\n\r\n", b"INSERTED 1\r\n")
    server.freeze()
    one.send(b"reserve\r\n")
    gevent.sleep(1.1)
    assert one.silent()
    server.advance(1)
    one.expect(b"RESERVED 1 0\r\n\r\n")


def test_clock_that_jumps_is_noticed_without_a_command(server):
    now = 100.0
    with Server(clock=lambda: now) as moved, closing(Both(moved)) as both:
        wire = both.wire()
        wire.say(b"put 0 3600 60 0\r\n\r\n", b"INSERTED 1\r\n")
        wire.send(b"reserve\r\n")
        assert wire.silent()
        now += 3600
        wire.expect(b"RESERVED 1 0\r\n\r\n")


def test_restart_drops_everything_but_the_address(server, embedded, one):
    one.say(b"put 0 0 60 0\r\n\r\n", b"INSERTED 1\r\n")
    uri, instance = server.uri, one.ask(b"stats\r\n")["id"]
    server.drain()
    server.restart()
    assert one.at_end()
    again = embedded.wire()
    again.say(b"peek 1\r\nput 0 0 60 0\r\n\r\n", b"NOT_FOUND\r\nINSERTED 1\r\n")
    assert (server.uri, again.ask(b"stats\r\n")["id"] == instance) == (uri, False)


@pytest.mark.parametrize("unix", [False, True])
def test_stopped_server_refuses_until_it_is_started_again(unix):
    server = Server(unix=unix)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM) as sock:
            port = server.uri.rpartition(":")[2]
            sock.connect(server.uri.removeprefix("unix://") if unix else ("127.0.0.1", int(port)))

    server.start()
    connect()
    server.stop()
    with pytest.raises(OSError):
        connect()
    with server:
        connect()
    server.stop()  # once more does no harm


def test_address_in_use_is_told(server):
    other = Server(port=int(server.uri.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.stop()


def test_disconnect_all_leaves_the_jobs(server, embedded, one):
    one.say(b"put 0 0 60 0\r\n\r\nreserve\r\n", HELD)
    server.disconnect_all()
    assert one.at_end()
    assert embedded.wire().ask(b"stats-job 1\r\n")["state"] == "ready"


def test_slow_reader_is_read_no_further_and_stops_nobody(server, embedded, one):
    one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        while True:
            one.send(b"stats\r\n" * 1000)
    embedded.wire().say(b"list-tube-used\r\n", b"USING default\r\n")


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
def test_server_runs_patched_and_not(patch):
    code = PATCHED.format(patch=patch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert (done.stdout, done.stderr) == ("b'TIMED_OUT\\r\\n'\n", "")


@pytest.fixture
def run_pytest(tmp_path: Path) -> Callable[..., None]:
    """Run tests as somebody else would who has gstalk installed."""

    def run(tests: list[str], *args: str, conftest: str = "", **variables: str) -> None:
        for number, text in enumerate(tests):
            (tmp_path / f"test_{number}.py").write_text(text)
        (tmp_path / "conftest.py").write_text(conftest)
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", "pytest", "-p", "_gstalk_pytest", "-W", "error", "-q", *args, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=50)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.slow
@pytest.mark.parametrize("tests", [[FIXTURES], RECIPES], ids=["fixtures", "docs/testing.md"])
def test_programs_of_others_are_tested_with_the_plugin(run_pytest, tests):
    run_pytest(tests)


@pytest.mark.slow
def test_suite_that_patches_first_can_use_the_plugin(run_pytest):
    run_pytest(RECIPES, conftest=PATCHING)


@pytest.mark.slow
@pytest.mark.real
def test_plugin_works_in_many_processes_side_by_side(run_pytest, tmp_path):
    run_pytest([SIDE_BY_SIDE], "-p", "xdist.plugin", "-n", "2", SEEN=str(tmp_path / "seen"))
    assert set((tmp_path / "seen").read_text().split()) == {"gw0", "gw1"}


@pytest.mark.slow
def test_recipes_run_in_many_processes(run_pytest):
    run_pytest(RECIPES, "-p", "xdist.plugin", "-n", "2")


def test_servers_own_clock_is_not_one_that_frozen_tests_replace():
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2030-12-31"), Server() as server, closing(Both(server)) as both:
        wire = both.wire()
        wire.say(b"put 0 1 60 0\r\n\r\nreserve-with-timeout 3\r\n", b"INSERTED 1\r\nRESERVED 1 0\r\n\r\n")
