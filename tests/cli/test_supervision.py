"""`gstalk work` watched over, by its parent, by systemd, by a probe: real processes, real signals, a real server."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket, subprocess

from gstalk.cli import _generation
from gstalk.cli._child import Child
from gstalk.cli._generation import Generation, Plan
from gstalk.cli._lookout import LONG
from gstalk.cli._processes import ALIVE
from gstalk.cli._signs import Heartbeat
from gstalk.cli.work import work
from tests.cli.running import run
from tests.cli.working import ROOT, Working, counts
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

Start = Callable[..., Working]

# A handler for each way to keep the event loop, the first time only.
BLOCKING = """
import ctypes, os
import gevent
from gevent import monkey
from tasks import note


def lock_twice(library):
    lock = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)


WAYS = {
    b"python": lambda: monkey.get_original("time", "sleep")(1000),
    b"c": lambda: lock_twice(ctypes.CDLL(None)),  # no signal interrupts it
    b"lock": lambda: lock_twice(ctypes.PyDLL(None)),  # with Python's own lock held
    b"stopped": lambda: os.kill(os.getpid(), 19),
}


def handle(job):
    note(b"begun", job)
    try:
        os.mkdir(f"seen-{job.body.decode()}")
    except FileExistsError:
        note(b"done", job)
        return
    if job.body in WAYS:
        while not os.path.exists(f"seen-beside-{job.body.decode()}"):
            gevent.sleep(0.01)
        WAYS[job.body]()
    gevent.sleep(1000)
"""


def version(word: str, before: str = "") -> str:
    """A module, and what stands before its handler."""
    return f"""
import gevent, time, tasks
{before}
def handle(job):
    tasks.note(b"begun", job)
    gevent.sleep(0.3)
    tasks.note(b"{word}", job)
"""


def pids(worker: Working, word: str) -> set[int]:
    return {pid for _, pid in worker.noted(word)}


class Manager:
    """A service manager that listens, as systemd does."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1200000"}
        self.words: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address if address[0] == "/" else f"\0{address[1:]}")
        self._listener = gevent.spawn(self._listen)

    def _listen(self) -> None:
        while True:
            self.words += self._sock.recv(4096).decode().split("\n")[:1]

    def close(self) -> None:
        self._listener.kill()
        self._sock.close()

    def wait(self, word: str, count: int = 1) -> None:
        wait_until(lambda: self.words.count(word) >= count, 30)

    @property
    def story(self) -> list[str]:
        return [word for word in self.words if word != "WATCHDOG=1"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture
def abstract_manager() -> Iterator[Manager]:
    """One whose socket is no file."""
    made = Manager(f"@gstalk-{os.urandom(8).hex()}")
    yield made
    made.close()


# -- a blocked event loop ----------------------------------------------------------------------------------------


def test_process_whose_loop_is_blocked_is_killed_and_its_jobs_run_elsewhere(start, conn, tmp_path, tube):
    """Blocked in Python, in C without and with Python's lock, or stopped: four workers, side by side."""
    (tmp_path / "blocking.py").write_text(BLOCKING)
    workers, ids = {}, {}
    for way in ("python", "c", "lock", "stopped"):
        ids[way] = [conn.put(f"{tube}-{way}", body.encode()) for body in (way, f"beside-{way}")]
        patch = ["--patch"] * (way == "python")
        words = ("blocking:handle", "--hang-timeout", "1", "--auto-delete", *patch)
        workers[way] = start(*words, tubes=(f"{tube}-{way}",))
    for way, worker in workers.items():
        bodies = {way.encode(), f"beside-{way}".encode()}
        worker.wait_noted("done", bodies=bodies)
        first = next(pid for body, pid in worker.noted("begun") if body in bodies)
        assert first not in pids(worker, "done")
        if way in ("python", "c"):
            job = f"job {ids[way][0]} of {tube}-{way}"
            where = rf"pid {first}: its event loop is blocked for \d\.\d s: {job}, at .*blocking.py:\d+, in "
            assert re.search(f"{where}.*; 0 jobs done, 0 failed; 2 of 10 greenlets have a job\n", worker.errors)
            for job_id in ids[way]:
                job = f"job {job_id} of {tube}-{way}"
                assert re.search(rf"  {job} for \d\.\d s\n    .*blocking.py:\d+, in", worker.errors)
            assert f"process {first} stands still: killing it" in worker.errors
            assert f"process {first} was killed by signal 9; the next one starts in " in worker.errors
        else:
            assert f"process {first} stands still and can't say where" in worker.errors
            assert ("in lock_twice" in worker.errors) == (way == "lock")  # Python's fault handler could
        # Of a patched process it is known that its handlers wait in gevent's way.
        assert ("is not monkey-patched (--patch)" in worker.errors) == (way == "c")
        worker.signal(signal.SIGTERM)
    assert [worker.end() for worker in workers.values()] == [0] * 4


def test_silence_of_a_process_counts_from_its_first_turn_on():
    """A module may take long to be imported: no job is in hand then."""
    program = "import os, sys, time; os.write(int(sys.argv[3]), sys.argv[1].encode()); time.sleep(1000)"
    told: list[object] = []
    children = [
        Child([sys.executable, "-ISc", program, words], 1, told.append, lambda: told.append("ready"))
        for words in ("U", "P.R.", ".")
    ]
    try:
        wait_until(lambda: len(told) == 3)
        assert sorted(map(str, told)) == ["False", "True", "ready"]
        assert [child.is_loaded for child in children] == [True, True, False]
        silences = [[child.silence(10.0**9 + second) for second in range(5)] for child in children[:2]]
        assert silences == [[0] * 5, [0, 1, 2, 3, 4]]
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL


ENDING = """
import atexit, time
from tasks import returns

atexit.register(time.sleep, 4)
"""


def test_process_that_begins_or_ends_is_not_taken_for_one_that_stands_still(start, conn, tube, tmp_path):
    """It answers SIGUSR1 when it can; what a program does at its end may take its time."""
    (tmp_path / "ending.py").write_text(ENDING)
    words = ("ending:returns", "--auto-delete", "--processes", "1", "--hang-timeout", "1", "--heartbeat", "beat")
    worker = start(*words)
    worker.wait_said("process [0-9]+ started")
    worker.signal(signal.SIGUSR1)
    conn.put(tube, b"x")
    worker.wait_noted("done")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    assert time.time() - (tmp_path / "beat").stat().st_mtime < 2
    assert "stands still" not in worker.errors
    assert "was killed" not in worker.errors
    assert re.search(r"pid \d+: 0 jobs done, 0 failed; 0 of 10 greenlets have a job", worker.errors)


def test_attempt_whose_last_process_fails_when_it_is_ready_has_failed(monkeypatch):
    """Else its place would stay empty, beside others that work."""

    class Failing:
        pid = 1

        def __init__(self, command: object, period: float, on_loaded: object, on_ready: Callable[[], object]) -> None:
            self.wait = lambda: (on_ready(), 1)[1]

    monkeypatch.setattr(_generation, "Child", Failing)
    attempt = Generation(Plan([], 1, False, 1), 1, lambda text: None, lambda is_patched: None, is_trial=True)
    judging = gevent.spawn(attempt.until_ready)
    gevent.spawn(attempt.run).join()
    assert judging.get(timeout=5) is False


def test_blocked_worker_has_no_sign_of_life_and_tells_who_blocks_it(
    start, conn, tube, tmp_path, manager, abstract_manager
):
    """A stop that is late says so, with the job. So does an unpatched process; once. One without a server is alive."""
    start("tasks:quick", uri="127.0.0.1:1", environment=abstract_manager.environment)
    conn.put(f"{tube}-2", b"x")
    parent = start("tasks:blocks", "--processes", "2", "--heartbeat", "all", tubes=(f"{tube}-2",))
    job_id = conn.put(tube, b"x")
    worker = start("tasks:blocks", "--heartbeat", "alive", environment=manager.environment)
    manager.wait("READY=1")
    place = f"s: job {job_id} of {tube}, at .*tasks.py:.*, in blocks: time.sleep"
    worker.wait_said(rf"is not monkey-patched .* blocked for 1\.\d {place}")
    beats, touched = manager.words.count("WATCHDOG=1"), (tmp_path / "alive").stat().st_mtime_ns
    worker.signal(signal.SIGTERM)
    worker.wait_said(r"pid \d+ stops; 1 job in progress\n")
    worker.wait_said(rf"pid \d+ can't stop yet: its event loop is blocked for \d\.\d {place}")
    worker.signal(signal.SIGTERM)
    # Nor has a parent a sign of life, while one of its processes is blocked.
    parent.wait_said("is not monkey-patched")
    gevent.sleep(ALIVE - LONG)
    os.utime(tmp_path / "all", (0, 0))
    gevent.sleep(1.5)
    assert (tmp_path / "all").stat().st_mtime == 0
    assert worker.end(10) == 1
    assert (manager.words.count("WATCHDOG=1"), (tmp_path / "alive").stat().st_mtime_ns) == (beats, touched)
    assert worker.errors.count("can't stop yet") == worker.errors.count("is not monkey-patched") == 1
    assert manager.story == ["READY=1", "STOPPING=1"]
    abstract_manager.wait("READY=1")  # a server that comes later is no reason to wait with all that hangs on it


# -- SIGHUP ------------------------------------------------------------------------------------------------------


def test_hang_up_has_new_processes_work_before_the_old_ones_stop(start, conn, tube, tmp_path, abstract_manager):
    """Also where the new code is broken, at first, or takes too long: then the old ones go on."""
    manager = abstract_manager
    code = tmp_path / "app.py"
    code.write_text(version("old"))
    worker = start(
        "app:handle", "--auto-delete", "--greenlets", "2", "--processes", "2", "--heartbeat", "alive",
        environment=manager.environment,
    )  # fmt: skip
    manager.wait("READY=1")
    least: list[int] = []
    ours = 1

    def look() -> None:
        while True:
            least.append((conn.stats_tube(tube).current_watching or 0) - ours)
            gevent.sleep(0.002)

    looking = gevent.spawn(look)
    wait_until(lambda: conn.stats_tube(tube).current_waiting == 2, 30)  # so that each of them gets one
    conn.put_many(tube, [b"x"] * 4)
    worker.wait_noted("old", 4)
    old = pids(worker, "old")
    os.kill(min(old), signal.SIGHUP)  # the parent's business alone

    code.write_text("number = 1 / 0\n")
    worker.signal(signal.SIGHUP)
    worker.wait_said("can't restart its processes: a new one failed; the old ones go on")
    manager.wait("READY=1", 2)
    code.write_text(version("slow", "time.sleep(1000)"))
    worker.signal(signal.SIGHUP)
    wait_until(lambda: len(re.findall(r"process \d+ started", worker.errors)) == 6, 30)
    conn.put_many(tube, [b"x"] * 4)
    worker.wait_noted("old", 8)
    assert pids(worker, "old") == old

    conn.put_many(tube, [b"x"] * 2)
    worker.wait_noted("begun", 10)
    code.write_text(version("new"))
    worker.signal(signal.SIGHUP)
    manager.wait("READY=1", 3)
    worker.wait_noted("old", 10)  # what was in hand is finished
    wait_until(lambda: worker.errors.count("stopped: ") == 2, 30)
    conn.put_many(tube, [b"x"] * 4)
    worker.wait_noted("new", 4)
    looking.kill()
    assert min(least) == 2
    assert not pids(worker, "new") & old
    os.utime(tmp_path / "alive", (0, 0))
    wait_until(lambda: (tmp_path / "alive").stat().st_mtime > 1)
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0, worker.errors
    assert not worker.noted("slow")
    assert manager.story == ["READY=1", *["RELOADING=1", "READY=1"], *["RELOADING=1"] * 2, "READY=1", "STOPPING=1"]
    assert "WATCHDOG=1" in manager.words
    assert counts(conn, tube) == (0, 0, 0, 0)


def test_hang_up_has_a_worker_finish_and_begin_anew(start, conn, tube, tmp_path, manager):
    code = tmp_path / "app.py"
    code.write_text(version("old"))
    worker = start("app:handle", "--auto-delete", "--heartbeat", "alive", environment=manager.environment)
    conn.put(tube, b"x")
    worker.wait_noted("begun")
    code.write_text(version("new"))
    worker.signal(signal.SIGHUP)
    worker.wait_noted("old")
    for _ in range(100):  # also in the moments in which it is neither what it was nor what it is to be
        worker.signal(signal.SIGHUP)
        gevent.sleep(0.01)
    conn.put(tube, b"x")
    worker.wait_noted("new")
    manager.wait("READY=1", 2)
    manager.wait("WATCHDOG=1", 3)
    assert "restarts; 1 job in progress" in worker.errors
    assert pids(worker, "old") == pids(worker, "new") == {worker.process.pid}
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    first, *between, ready, last = manager.story
    assert (first, ready, last) == ("READY=1", "READY=1", "STOPPING=1")
    assert between[0] == "RELOADING=1"
    assert len(worker.noted("old")) == len(worker.noted("new")) == 1


STRIKES = """
import os, gstalk
make = gstalk.Consumer.__init__


def strike(self, *args):
    if not os.path.exists("struck"):
        os.mkdir("struck")
        os.kill(os.getpid(), 1)
    make(self, *args)


gstalk.Consumer.__init__ = strike
"""


def test_hang_up_while_it_begins_has_a_worker_begin_anew(start, conn, tube, tmp_path):
    """While the module is imported; and behind that, when the Consumer is made."""
    code = tmp_path / "app.py"
    code.write_text(version("old", "tasks.note(b'importing', type('', (), {'body': b'x'}))\ntime.sleep(0.5)"))
    worker = start("app:handle", "--auto-delete")
    worker.wait_noted("importing")
    code.write_text(version("new", STRIKES))
    worker.signal(signal.SIGHUP)
    wait_until(lambda: worker.errors.count(" works, pid ") == 3, 30)
    conn.put(tube, b"x")
    worker.wait_noted("new")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    assert not worker.noted("old")


def test_terminal_that_is_closed_ends_the_worker(tmp_path, server, conn, tube):
    """To it, too, SIGHUP comes of that; it must not go on for ever where nobody sees it."""
    for name in ("one", "two"):
        conn.put(f"{tube}-{name}", name.encode())
    words = "tasks:half_a_second", "--tube"
    (one, its_one), (two, its_two) = os.openpty(), os.openpty()
    with (
        Working(tmp_path, server.uri, *words, f"{tube}-one", terminal=its_one) as alone,
        Working(tmp_path, server.uri, *words, f"{tube}-two", "--processes", "1", terminal=its_two) as parent,
    ):
        alone.wait_noted("begun", bodies={b"one", b"two"})
        for end in (one, its_one, two, its_two):
            os.close(end)
        assert [alone.process.wait(timeout=30), parent.process.wait(timeout=30)] == [0, 0]
        assert len(alone.noted("done")) == 2


# -- memory ------------------------------------------------------------------------------------------------------

GROWS = """
import tasks

held = []


def handle(job):
    held.append(bytearray(b"x") * 2**27)
    tasks.note(b"done", job)
"""


def test_process_that_has_grown_is_replaced(start, conn, tube, tmp_path):
    """Alone it is begun anew; under a parent another one takes its place."""
    (tmp_path / "grows.py").write_text(GROWS)
    alone, parent = (
        start("grows:handle", "--auto-delete", "--max-memory", "150", *args, tubes=(f"{tube}-{name}",))
        for name, args in (("one", ()), ("child", ("--processes", "1")))
    )
    for name, worker in (("one", alone), ("child", parent)):
        conn.put(f"{tube}-{name}", name.encode())
        worker.wait_said(r"pid \d+ has grown to \d+ MiB, beyond --max-memory 150: restarting")
        conn.put(f"{tube}-{name}", name.encode())
    alone.wait_noted("done", 4)
    for worker in (alone, parent):
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    assert [len({pid for body, pid in alone.noted("done") if body == name}) for name in (b"one", b"child")] == [1, 2]
    assert counts(conn, tube) == (0, 0, 0, 0)


# -- what is said ------------------------------------------------------------------------------------------------


def test_quiet_worker_says_nothing_but_what_goes_wrong(start, conn, tube):
    conn.put(tube, b"x")
    workers = [
        start("tasks:returns", "--quiet", "--auto-delete", "--burst", *args) for args in ((), ("--processes", "2"))
    ]
    assert [(worker.end(), worker.errors) for worker in workers] == [(0, ""), (0, "")]
    assert len(workers[0].noted("done")) == 1


def test_quiet_and_verbose_exclude_each_other():
    assert run("work", "a:b", "--tube", "t", "-q", "-v").err == (
        "gstalk: --quiet and --verbose exclude each other; see 'gstalk work --help'\n"
    )


def test_banner_says_whether_the_process_is_patched_whoever_did_it(start, tmp_path):
    (tmp_path / "app.py").write_text("from gevent import monkey\nmonkey.patch_all()\nfrom tasks import returns\n")
    workers = [start("tasks:returns", "--burst"), start("app:returns", "--burst")]
    workers += [start("app:returns", "--burst", "--processes", "1")]
    assert [worker.end() for worker in workers] == [0] * 3
    found = [re.findall(r"^  handlers .*; (.*monkey-patched)$", each.errors, re.MULTILINE) for each in workers]
    assert found == [["not monkey-patched"], ["monkey-patched"], ["monkey-patched"]]


def test_heartbeat_that_can_not_be_touched_is_wrong_usage(start):
    for worker in [start("tasks:returns", "--heartbeat", "no/where", *args) for args in ((), ("--processes", "1"))]:
        assert worker.end() == 2
        assert worker.errors == (
            "gstalk: heartbeat no/where can't be touched: there is no directory no; see 'gstalk work --help'\n"
        )


# -- docs/worker.md ----------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "worker.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_liveness_probe_of_the_page_asks_for_a_file_that_is_young(tmp_path):
    (line,) = re.findall(r"command: \[sh, -c, '(.*/tmp/alive.*)'\]", PAGE)
    file = tmp_path / "alive"
    probe = ["sh", "-c", line.replace("/tmp/alive", str(file))]
    Heartbeat(str(file))()
    young = subprocess.call(probe)
    then = time.time() - 70
    os.utime(file, (then, then))
    assert (young, subprocess.call(probe)) == (0, 1)


def test_command_lines_of_the_pages_are_understood():
    pages = PAGE + DEPLOYMENT
    lines = re.findall(r"gstalk (work .* --tube .*)", pages) + [
        f"work {words.replace(',', ' ')}" for words in re.findall(r'\["?gstalk"?, "?work"?, (.*)\]', pages)
    ]
    assert len(lines) == 6
    for line in lines:
        work.make_context("work", shlex.split(line)[1:])  # raises, if an option is none
