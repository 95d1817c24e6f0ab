"""The asyncio example as a worker, patched and not; and what docs/asyncio.md says fails, failing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gevent import socket, subprocess
from gevent.lock import Semaphore
from gevent.server import StreamServer

import gstalk
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytestmark = pytest.mark.real

APP = Path(__file__).parents[2] / "examples" / "asyncio_app"
MODES = {
    "unpatched": "",
    "patched": "from gevent import monkey; monkey.patch_all()\n",
    "patched, but for threads": "from gevent import monkey; monkey.patch_all(thread=False)\n",
}


class Meeting:
    """A server that answers nobody until so many are there."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._here: list[socket.socket] = []
        self._open = Semaphore(0)
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port = int(self._server.server_port or 0)

    def _serve(self, sock: socket.socket, address: object) -> None:
        self._here.append(sock)
        if len(self._here) == self._many:
            for _ in range(self._many):
                self._open.release()
        self._open.acquire()
        sock.sendall(b"page\n")

    def close(self) -> None:
        self._server.stop(0)


LOOKS_UP_NO_NAMES = pytest.mark.skipif(sys.version_info >= (3, 14), reason="gevent's: docs/asyncio.md tells of it")


@pytest.mark.parametrize(
    "patch", [pytest.param([], id="unpatched"), pytest.param(["--patch"], id="patched", marks=LOOKS_UP_NO_NAMES)]
)
def test_worker_fetches_side_by_side(patch, server, tube, conn):
    """None of ten coroutines gets its answer before all ten are on the line, and names are looked up."""
    meeting = Meeting(10)
    command = [sys.executable, "-m", "gstalk", "--uri", server.uri, "work", "app:handle", "--tube", tube, *patch]
    conn.put_many(tube, [b"localhost:%d" % meeting.port] * 10)
    worker = subprocess.Popen(command, cwd=APP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: conn.stats_tube(tube).cmd_delete == 10, 20)
        worker.terminate()
        said, errors = worker.communicate(timeout=20)
    finally:
        worker.kill()
        worker.wait()
        meeting.close()
    assert worker.returncode == 0, errors
    assert said == "fetched page\n" * 10
    assert "Traceback" not in errors


def run(mode: str, program: str, uri: str = "") -> str:
    """Run a program in a process of its own, in the example's folder."""
    command = [sys.executable, "-c", MODES[mode] + program, uri]
    done = subprocess.run(command, cwd=APP, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


LOOP = """
import asyncio, contextvars, gevent
from loop import Loop

loop = Loop()
fate = []
request = contextvars.ContextVar("request")
request.set("a job's")

async def ask():
    await asyncio.sleep(0)
    return request.get()

async def hang():
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        fate.append("cancelled")
        raise

async def fail():
    raise ValueError("no")

with gevent.Timeout(0.05, False):
    loop.run(hang())
while not fate:
    gevent.sleep(0.001)
try:
    loop.run(fail())
except ValueError as error:
    fate.append(str(error))
print(fate, loop.run(ask()))
loop.close()
"""


@pytest.mark.parametrize("mode", ["unpatched", "patched"])
def test_coroutine_is_cancelled_with_its_wait_and_has_its_callers_context(mode):
    assert run(mode, LOOP) == "['cancelled', 'no'] a job's\n"


NAIVE = """
import asyncio, gevent

both = []

async def meet(seconds):
    both.append(1)
    for _ in range(int(seconds * 100)):
        if len(both) == 2:
            return "met"
        await asyncio.sleep(0.01)
    return "alone"

def handler(seconds):
    try:
        print(asyncio.run(meet(seconds)))
    except RuntimeError as error:
        print(error)

gevent.joinall([gevent.spawn(handler, 0.2), gevent.spawn(handler, 0.2)])
"""


def test_asyncio_run_in_a_handler_holds_up_all_others():
    assert run("unpatched", NAIVE) == "alone\nmet\n"  # the second one began when the first had ended


@pytest.mark.filterwarnings("ignore")
def test_asyncio_run_in_two_patched_handlers_is_refused():
    said = run("patched", NAIVE)
    assert sorted(said.splitlines()) == ["alone", "asyncio.run() cannot be called from a running event loop"]


JOB = """
import sys, gstalk
from loop import Loop

loop = Loop()

async def delete(job):
    job.delete()

with gstalk.dial(sys.argv[1]) as conn:
    conn.put("default", b"")
    job = conn.reserve()
    try:
        loop.run(delete(job))
    except gstalk.WrongHubError:
        print("WrongHubError, finished:", job.is_finished)
    else:
        print("deleted")
loop.close()
"""


@pytest.mark.parametrize(
    ("mode", "said"), [("unpatched", "WrongHubError, finished: False\n"), ("patched", "deleted\n")]
)
def test_job_in_a_coroutine_is_refused_in_the_loops_thread(mode, said, own_server: Beanstalkd):
    assert run(mode, JOB, own_server.uri) == said


THREAD = """
import asyncio, gevent

running = gevent.get_hub().threadpool.spawn(asyncio.new_event_loop().run_forever)
try:
    running.get()
except gevent.hub.LoopExit:
    print("LoopExit")
"""


def test_loop_in_a_thread_of_a_patched_program_ends():
    assert run("patched", THREAD) == "LoopExit\n"


LOOK_UP = """
import asyncio, gevent
from loop import Loop

loop = Loop()

async def look_up():
    for _ in range(3):
        found = asyncio.get_running_loop().getaddrinfo("localhost", 1)
        found = await asyncio.wait_for(found, 0.5)
        await asyncio.sleep(0.1)  # the executor's thread waits for work again, in gevent's way where that is patched
    return bool(found)

try:
    print(loop.run(look_up()))
except asyncio.TimeoutError:
    print("nothing found")
"""


def test_second_look_up_of_a_name_never_ends_where_all_but_threads_is_patched():
    """The worker above looks its names up unpatched, and patched."""
    assert run("patched, but for threads", LOOK_UP) == "nothing found\n"


def test_async_handler_is_refused():
    async def handler(job: gstalk.Job) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        gstalk.Consumer("localhost:11300", "fetch").receive(handler)  # type: ignore[arg-type]
