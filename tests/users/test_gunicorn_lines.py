"""The lines that start gunicorn, copied from where users read them and run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from gevent import get_hub, subprocess

import gstalk
from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port
from tests.servers import wait_until
from tests.users.test_gunicorn import APP

pytest.importorskip("flask")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.limit(120)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gunicorn.md").read_text(encoding="utf-8")
ENTER, START = re.findall(r"^    (cd .*)\n    (gunicorn .*)\n", PAGE, re.MULTILINE)[0]
CONSUMES = re.findall(r"^    (CONSUME=.*)\n", PAGE, re.MULTILINE)[0]
IN_APP = re.findall(r"^Run, in this folder, .*: (gunicorn .*)$", (APP / "app.py").read_text("utf-8"), re.MULTILINE)[0]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The examples where a user has them, and nothing else of the project."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


class Started:
    def __init__(self, process: Any, said: Path, port: int) -> None:
        self.process, self.port, self._said = process, port, said

    @property
    def said(self) -> str:
        return self._said.read_text("utf-8")

    @property
    def master(self) -> int:
        """The shell's child, or what the shell has become."""
        return int(re.findall(r"Listening at: .* \((\d+)\)", self.said)[0])

    def booted(self) -> set[str]:
        return set(re.findall(r"Booting worker with pid: (\d+)", self.said))

    def put(self, tube: str) -> int:
        """Have the app put a job; its HTTP status."""
        request = Request(f"http://127.0.0.1:{self.port}/jobs/{tube}", data=b"hello", method="POST")
        status: int = get_hub().threadpool.apply(lambda: urlopen(request, timeout=30).status)
        return status

    def wait_serving(self, uri: str, connections: int) -> None:
        """Wait until two workers have loaded the app and made so many connections each, a Consumer's included.

        A worker that has booted, as gunicorn says, does not heed signals yet: one that comes before is lost.
        """
        with gstalk.dial(uri) as conn:
            wait_until(lambda: (conn.stats().current_connections or 0) >= 1 + 2 * connections, 30)


@contextmanager
def started(lines: str, place: Path, uri: str, connections: int = 1) -> Iterator[Started]:
    """Run lines of shell; only the port and the server are ours, and the environment says them."""
    port = free_port()
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "BEANSTALKD_URI": uri,
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}",
        "HOME": str(place),
    }
    path = place / "said"
    with path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-ec", lines], cwd=place, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    running = Started(process, path, port)
    try:
        wait_until(lambda: len(running.booted()) >= 2 or process.poll() is not None, 30)
        running.wait_serving(uri, connections)
        yield running
        os.kill(running.master, signal.SIGTERM)
        wait_until(lambda: process.poll() is not None, 60)
        assert process.poll() == 0, running.said
        wait_until(lambda: "Shutting down: Master" in running.said, 60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_line_of_the_page_has_gevent_workers_that_put(copy: Path, own_server: Beanstalkd) -> None:
    with started(f"{ENTER}\n{START}", copy, own_server.uri) as gunicorn:
        assert "Using worker: gevent" in gunicorn.said
        assert gunicorn.put("mail") == 201
        first = gunicorn.booted()
        os.kill(gunicorn.master, signal.SIGHUP)  # the settings are found again
        wait_until(lambda: len(gunicorn.booted() - first) >= 2, 30)
        wait_until(lambda: gunicorn.said.count("Worker exiting") >= 2, 30)
        gunicorn.wait_serving(own_server.uri, 1)
        assert gunicorn.put("mail") == 201
    with gstalk.dial(own_server.uri) as conn:
        assert conn.stats_tube("mail").current_jobs_ready == 2


def test_line_of_the_page_with_a_consumer_works_the_tube_off(copy: Path, own_server: Beanstalkd) -> None:
    with started(f"{ENTER}\n{CONSUMES}", copy, own_server.uri, 2) as gunicorn, gstalk.dial(own_server.uri) as conn:
        assert gunicorn.put("mail") == 201
        conn.watch("done")
        job = conn.reserve_with_timeout(30)
        assert job is not None
        assert job.body == b"hello"


def test_line_of_the_app_is_that_of_the_page() -> None:
    assert IN_APP == START
