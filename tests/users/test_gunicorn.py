"""The Flask example under a real gunicorn and a real load, reloaded and stopped in the middle of it.

What counts is read from beanstalkd afterwards: a request that was answered with 201 has put one job, with the body that
it sent and the id that it was told; one that was not answered has put one or none.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port
from tests.conftest import SOAK
from tests.servers import wait_until
from tests.users.load import Load

pytest.importorskip("flask")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.soak, pytest.mark.limit(300)]

APP = Path(__file__).parents[2] / "examples" / "flask_app"
WORKERS = 3
CLIENTS = 32 if SOAK else 12  # they leave the workers time to begin

# A preloading master that is patched runs its hub, so its Producer connects there, before the workers are forked.
STYLES = {"each worker loads": "", "preload": "preload_app = True", "preload in a patched master": "preload_app = True"}
PATCH = "from gevent import monkey\n\nmonkey.patch_all()\n"

# gunicorn loses a signal to a worker that has not installed its handlers yet, so the test is told when it has.
SETTINGS = """
{patch}
exec(open("gunicorn.conf.py").read())
{preload}
begin = post_worker_init


def post_worker_init(worker):
    begin(worker)
    worker.log.info("Worker ready (pid: %s)", worker.pid)
"""


# What gunicorn 23 calls an error where a worker is told to stop, and what gevent 24.2 says at the end of a process.
NOISE = re.compile(
    r"^\[[^]]+\] \[\d+\] \[ERROR\] Worker \(pid:\d+\) was sent SIGTERM!\n"
    r"|^Exception ignored in: <function _removeHandlerRef (?:.*\n){1,9}?RuntimeError: greenlet is being finalized\n",
    re.MULTILINE,
)


class Gunicorn:
    """gunicorn with `WORKERS` workers; what it says is kept."""

    def __init__(self, place: Path, uri: str, style: str, consume: str = "") -> None:
        self.port = free_port()
        self._said = place / "said"
        patch = PATCH if style.endswith("patched master") else ""
        settings = place / "settings.py"
        settings.write_text(SETTINGS.format(patch=patch, preload=STYLES[style]))
        command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", str(WORKERS), "-b", f"127.0.0.1:{self.port}"]
        command += ["--keep-alive", "60", "--config", str(settings), "app:app"]
        environment = {**os.environ, "BEANSTALKD_URI": uri, "CONSUME": consume, "HOME": str(place)}
        with self._said.open("wb") as output:
            self._process: Any = subprocess.Popen(command, cwd=APP, env=environment, stdout=output, stderr=output)
        wait_until(lambda: len(self.alive()) == WORKERS, 30)

    @property
    def said(self) -> str:
        return self._said.read_text("utf-8")

    def alive(self) -> set[int]:
        """The workers that are ready and have not ended."""
        ready, ended = (
            {int(pid) for pid in re.findall(rf"Worker {word} \(pid: (\d+)\)", self.said)}
            for word in ("ready", "exiting")
        )
        return ready - ended

    def reload(self) -> None:
        """HUP, and wait until all workers are new ones."""
        before = self.alive()
        os.kill(self._process.pid, signal.SIGHUP)
        wait_until(lambda: len(self.alive() - before) == WORKERS and not self.alive() & before, 60)

    def stop_a_worker(self) -> None:
        """A graceful stop of one; the master starts another."""
        before = self.alive()
        pid = min(before)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pid not in self.alive() and len(self.alive()) == WORKERS, 60)

    def stop(self) -> None:
        """A graceful stop of all."""
        os.kill(self._process.pid, signal.SIGTERM)
        assert self._process.wait(60) == 0

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            for pid in self.alive():
                os.kill(pid, signal.SIGKILL)

    def complaints(self) -> list[str]:
        """All that it said beyond its daily business; gstalk and the app log there, too."""
        said = NOISE.sub("", self.said)
        return [line for line in said.splitlines() if not re.match(r"\[[^]]+\] \[\d+\] \[INFO\] ", line)]


@pytest.fixture
def start(own_server: Beanstalkd, tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    running: list[Gunicorn] = []

    def start(style: str, **options: Any) -> Gunicorn:
        running.append(Gunicorn(tmp_path, own_server.uri, style, **options))
        return running[-1]

    yield start
    for gunicorn in running:
        gunicorn.close()


def wait_for(load: Load, more: int) -> None:
    goal = len(load.accepted) + more
    wait_until(lambda: len(load.accepted) >= goal, 60)


def jobs(uri: str, *tubes: str) -> dict[bytes, list[int]]:
    """The ids of each body in these tubes."""
    found = defaultdict(list)
    with gstalk.dial(uri) as conn:
        wait_until(lambda: conn.stats().current_connections == 1)  # the server has yet to see that the workers are gone
        assert conn.stats().current_jobs_reserved == 0
        for tube in tubes:
            conn.watch(tube)
        while job := conn.reserve_with_timeout(0):
            found[job.body].append(job.id)
            job.delete()
    return found


def run(gunicorn: Gunicorn, reloads: int) -> Load:
    """A load through reloads and stops, until gunicorn has ended."""
    load = Load(gunicorn.port, "/jobs/work", CLIENTS)
    for _ in range(reloads):
        wait_for(load, 200)
        gunicorn.reload()
        wait_for(load, 200)
        gunicorn.stop_a_worker()
    wait_for(load, 200)
    assert (load.unanswered, load.refused) == (set(), 0)  # no reload and no worker's stop cost a request
    gunicorn.stop()
    load.stop()
    assert load.others == {}
    assert gunicorn.complaints() == []
    return load


@pytest.mark.parametrize("style", STYLES)
def test_gunicorn_each_accepted_request_has_put_its_job_once(style, start, own_server, many, figures):
    load = run(start(style), many(1, 20))
    figures.update(load.figures())
    found = jobs(own_server.uri, "work")
    assert {body: [job_id] for body, job_id in load.accepted.items()} == {
        body: ids for body, ids in found.items() if body not in load.unanswered
    }
    assert all(len(found[body]) <= 1 for body in load.unanswered)


def test_gunicorn_consumers_in_workers_handle_each_job_once(start, own_server, many, figures):
    """They are stopped by the hook of the workers' exits, in the middle of the load."""
    load = run(start("each worker loads", consume="work"), many(1, 20))
    figures.update(load.figures())
    with gstalk.dial(own_server.uri) as conn:
        figures["handled"] = conn.stats_tube("done").total_jobs
    found = jobs(own_server.uri, "work", "done")
    assert all(len(ids) == 1 for ids in found.values())
    assert load.accepted.keys() <= found.keys() <= load.accepted.keys() | load.unanswered
