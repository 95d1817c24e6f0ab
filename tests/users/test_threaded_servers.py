"""Web servers that answer each request in a thread, as they are, under a load through restarts of beanstalkd.

What counts is read from beanstalkd afterwards: its log on disk keeps the jobs over a restart, though not quite all. One
that is killed may lose or ruin what it was just writing, also a job that it had acknowledged. So a witness stands
between, who knows what it said.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket, subprocess

from gstalk.testing import Beanstalkd
from gstalk.testing.beanstalkd import free_port
from tests.servers import wait_until
from tests.survival.record import taken_from
from tests.survival.witness import Witness
from tests.users.load import Load
from tests.users.test_gunicorn import APP

pytest.importorskip("django")
pytest.importorskip("flask")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.limit(120)]

CLIENTS = 8
GTHREAD = ["gunicorn", "-k", "gthread", "--threads", "8", "-w", "2", "-b", "127.0.0.1:{port}", "app:app"]
COMMANDS = {
    "flask run": ["flask", "run", "--port", "{port}"],
    "gunicorn -k gthread": GTHREAD,
    "gunicorn -k gthread --preload": [*GTHREAD, "--preload"],
    "django runserver": ["django", "runserver", "--noreload", "127.0.0.1:{port}"],
}
DJANGO = """
import os

from django.http import HttpRequest, JsonResponse
from django.urls import path

import gstalk

SECRET_KEY = "none"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "settings"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # it tells how long an answer is

producer = gstalk.Producer(os.environ["BEANSTALKD_URI"])


def put(request: HttpRequest, tube: str) -> JsonResponse:
    return JsonResponse({"id": producer.put(tube, request.body)}, status=201)


urlpatterns = [path("jobs/<str:tube>", put)]
"""


class WebServer:
    """One of them, as a process; what it says is kept."""

    def __init__(self, command: list[str], place: Path, uri: str) -> None:
        self.port = free_port()
        self._said = place / "said"
        (place / "settings.py").write_text(DJANGO)
        words = [word.format(port=self.port) for word in command]
        where = place if words[0] == "django" else APP
        environment = {**os.environ, "BEANSTALKD_URI": uri, "DJANGO_SETTINGS_MODULE": "settings", "HOME": str(place)}
        with self._said.open("wb") as output:
            self._process: Any = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=where, env=environment, stdout=output, stderr=output
            )
        wait_until(self._answers, 30)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.said
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionError:
            return False
        return True

    @property
    def said(self) -> str:
        return self._said.read_text("utf-8", "replace")

    def reload(self) -> None:
        os.kill(self._process.pid, signal.SIGHUP)

    def processes(self) -> list[int]:
        """Itself and its workers."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [pid, *map(int, children.read_text().split())] if children.exists() else []

    def descriptors(self) -> int:
        return max((len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes()), default=0)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Beanstalkd]:
    (tmp_path / "log").mkdir()
    with Beanstalkd(binlog=str(tmp_path / "log")) as running:
        yield running


@pytest.fixture
def witness(durable: Beanstalkd) -> Iterator[Witness]:
    with Witness(durable.uri, whole) as running:
        yield running


@pytest.fixture
def start(witness: Witness, tmp_path: Path) -> Iterator[Callable[[str], WebServer]]:
    running: list[WebServer] = []

    def start(name: str) -> WebServer:
        running.append(WebServer(COMMANDS[name], tmp_path, witness.uri))
        return running[-1]

    yield start
    for web in running:
        web.close()


def more(load: Load, count: int) -> None:
    goal = len(load.accepted) + count
    wait_until(lambda: len(load.accepted) >= goal, 60)


def whole(body: bytes) -> bytes:
    """A body of the load as it is, and nothing of one that a killed server has ruined."""
    return body if re.fullmatch(rb"[0-9]+-[0-9]+", body) else b""


def bodies(uri: str) -> Counter[bytes]:
    return Counter(whole(body) for _, body in taken_from(uri, "work"))


@pytest.mark.parametrize("name", COMMANDS)
def test_threaded_server_loses_no_put(name, start, durable, witness, many, figures):
    web, kills = start(name), many(1, 20)
    load = Load(web.port, "/jobs/work", CLIENTS)
    for _ in range(kills):
        more(load, 50)
        if "gthread" in name:
            web.reload()
            more(load, 50)
        durable.restart()
        more(load, 50)
    load.stop()
    figures |= load.figures()
    found = bodies(durable.uri)
    ruined = found.pop(b"", 0)
    lost = load.accepted.keys() - found.keys()
    figures |= {"doubled": sum(found.values()) - len(found), "lost by the server": len(lost), "ruined": ruined}
    assert load.others == {}, web.said
    # The server had said that it had each of these, under this id, and nobody has asked for their end.
    assert {(job_id, body) for body, job_id in load.accepted.items()} <= {put[1:] for put in witness.inserted}
    assert witness.deletes == set()
    assert max(len(lost), ruined) <= kills  # one in forty kills; more would be something else
    assert found.keys() <= load.accepted.keys() | load.unanswered
    # A put whose reply was lost when the server was killed is tried again: at most one of each thread, each time.
    assert figures["doubled"] <= kills * CLIENTS
    assert web.descriptors() < 60
    assert "Traceback" not in web.said

    # Nobody puts while the server is restarted: no put after it is ambiguous, so none is doubled.
    durable.restart()
    again = Load(web.port, "/jobs/work", CLIENTS)
    more(again, 50)
    again.stop()
    assert again.others == {}
    assert set(bodies(durable.uri).values()) == {1}
