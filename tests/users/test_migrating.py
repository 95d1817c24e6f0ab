"""The tables of docs/migrating.md, run row by row: on gstalk, and on the other client if it is Python and installed.

A cell holds code spans, one statement each, and may end with "is" or "raises" and what is expected of the last one.
Each side has a real beanstalkd of its own, with the same jobs; both must answer the same and leave the same behind.
What the Go package does can't be run here: `AFTER` says what its rows are to give.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytestmark = pytest.mark.real

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text("utf-8")
SPAN = "`([^`]+)`"


# -- the page ----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    what: str
    other: str
    gstalk: str


def rows(package: str) -> list[Row]:
    """The rows of the table headed by this package's name."""
    (table,) = re.findall(rf"^\| what \| {package} \| gstalk \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [Row(*line[2:-2].split(" | ")) for line in table.splitlines()]


def parse(cell: str) -> tuple[list[str], str, str]:
    """A cell's statements, "is" or "raises" or nothing, and what is expected."""
    found = re.fullmatch(rf"({SPAN}(?:<br>{SPAN})*)(?: (is|raises) {SPAN})?", cell)
    assert found, f"can't read the cell {cell}"
    return re.findall(SPAN, found[1]), found[4] or "", found[5] or ""


def cases(package: str) -> Any:
    return pytest.mark.parametrize("row", rows(package), ids=lambda row: row.what)


# -- what the rows act on ----------------------------------------------------------------------------------------


def greenstalk_client(module: Any, server: Beanstalkd) -> Any:
    return module.Client(("127.0.0.1", server.port), use="mail", watch="mail")


def beanstalkc_client(module: Any, server: Beanstalkd) -> Any:
    client = module.Connection("127.0.0.1", server.port, parse_yaml=importlib.import_module("yaml").safe_load)
    client.use("mail")
    client.watch("mail")
    client.ignore("default")
    return client


def pystalk_client(module: Any, server: Beanstalkd) -> Any:
    client = module.BeanstalkClient("127.0.0.1", server.port)
    client.use("mail")
    client.watch("mail")
    return client


def gstalk_client(module: Any, server: Beanstalkd) -> Any:
    conn = gstalk.dial(server.uri)
    conn.watch("mail")
    conn.ignore("default")
    return conn


CLIENTS: dict[str, Callable[[Any, Beanstalkd], Any]] = {
    "greenstalk": greenstalk_client,
    "beanstalkc": beanstalkc_client,
    "pystalk": pystalk_client,
    "gstalk": gstalk_client,
}
RESERVE = {"pystalk": "reserve_job", "beanstalkc": "reserve", "greenstalk": "reserve", "gstalk": "reserve"}


class Scene(dict[str, Any]):
    """The names that a row may use, on one side: each is made when it is asked for."""

    def __init__(self, package: str, server: Beanstalkd) -> None:
        self._package, self._server = package, server
        self._module = importlib.import_module(package)
        self.watcher = gstalk.dial(server.uri)
        super().__init__({package: self._module, "uri": server.uri, "uris": [server.uri]})
        self["buried_id"] = self.watcher.put("mail", b"buried", priority=10)
        self.watcher.watch("mail")
        self.watcher.reserve().bury()
        self["job_id"] = self.watcher.put("mail", b"ready", priority=10)
        self.watcher.put("mail", b"delayed", priority=10, delay=100)

    def __missing__(self, name: str) -> Any:
        match name:
            case "client" | "conn":
                made = CLIENTS[self._package](self._module, self._server)
            case "job":
                made = getattr(self["conn" if self._package == "gstalk" else "client"], RESERVE[self._package])()
            case "yaml":
                made = importlib.import_module("yaml")
            case "config":
                made = gstalk.Config()
            case "params":
                made = gstalk.PutParams(priority=5, delay=0, ttr=30)
            case "jobs":
                made = []
            case "body":
                made = b"hello"
            case "producer":
                made = gstalk.Producer(self._server.uri)
            case "consumer":
                made = gstalk.Consumer(self._server.uri, "mail")
                self.receiving = gevent.spawn(made.receive, lambda job: None)
                made.wait_connected()
            case "handler":
                made = self._handle
            case _:
                raise KeyError(name)
        self[name] = made
        return made

    def _handle(self, job: gstalk.Job) -> None:
        self["handled"] = job.body
        job.delete()
        self["consumer"].stop()

    def run(self, cell: str) -> Any:
        """Run a cell; what its last statement gives, in words common to all clients."""
        code, verb, expected = parse(cell)
        code = [each.replace("11300", str(self._server.port)) for each in code]
        if "unix" in self._server.uri:
            code = [each.replace("/tmp/socket", self._server.uri.removeprefix("unix://")) for each in code]
        for statement in code[:-1]:
            exec(statement, {}, self)
        if verb == "raises":
            with pytest.raises(eval(expected, {}, self)):
                exec(code[-1], {}, self)
            return "nothing or an error"
        if re.match(r"\w+ = ", code[-1]):
            exec(code[-1], {}, self)
            return None
        result = eval(code[-1], {}, self)
        if verb == "is":
            assert result == eval(expected, {}, self)
            return "nothing or an error"
        return common(result)

    def left(self) -> dict[Any, Any]:
        """What somebody else sees at the server: jobs, pauses, and how many watch."""
        seen: dict[Any, Any] = {}
        for job_id in range(1, (self.watcher.stats().total_jobs or 0) + 1):
            if job := self.watcher.peek(job_id):
                stats = self.watcher.stats_job(job_id)
                counts = (stats.reserves, stats.releases, stats.buries, stats.kicks)
                seen[job_id] = (job.body, stats.tube, stats.state, stats.pri, stats.delay, stats.ttr, *counts)
        for tube in self.watcher.list_tubes():
            about = self.watcher.stats_tube(tube)
            seen[tube] = (about.pause, about.current_watching)
        return seen

    def connections(self) -> int | None:
        return self.watcher.stats().current_connections

    def close(self) -> None:
        for name in ("client", "conn", "watcher"):
            if name in self:
                self[name].close()
        for name in ("consumer", "producer"):
            if name in self:
                self[name].stop()
        if self._package == "beanstalkc":
            self["client"]._socket_file.close()  # its own close leaves that open
        if "pool" in self:
            for record in self["pool"]._clients:
                record.client.close()
        self.watcher.close()


def common(result: Any) -> Any:
    """A job as its body, lists without order, and numbers."""
    if isinstance(result, list):
        return sorted(map(common, result))
    for name in ("body", "job_data"):
        if hasattr(result, name):
            return common(getattr(result, name))
    if result in (b"RELEASED", b"BURIED", b"PAUSED"):  # pystalk's way of saying that all is well
        return None
    return result.encode() if isinstance(result, str) else result


@pytest.fixture
def stage() -> Iterator[Callable[[str, str], Scene]]:
    made: list[tuple[Scene, Beanstalkd]] = []

    def build(package: str, cell: str) -> Scene:
        pytest.importorskip(package)
        server = Beanstalkd(unix="/tmp/socket" in cell)
        server.start()
        made.append((Scene(package, server), server))
        return made[-1][0]

    yield build
    for scene, server in made:
        scene.close()
        server.stop()


def compare(package: str, row: Row, stage: Callable[[str, str], Scene]) -> None:
    theirs, ours = stage(package, row.other), stage("gstalk", row.gstalk)
    answered = theirs.run(row.other)
    assert ours.run(row.gstalk) == answered
    assert ours.left() == theirs.left()
    wait_until(lambda: ours.connections() == theirs.connections())


# -- the tables --------------------------------------------------------------------------------------------------


@cases("greenstalk")
def test_greenstalk_row_does_the_same_on_both_sides(row, stage):
    compare("greenstalk", row, stage)


@cases("beanstalkc")
def test_beanstalkc_row_does_the_same_on_both_sides(row, stage):
    compare("beanstalkc", row, stage)


@cases("pystalk")
def test_pystalk_row_does_the_same_on_both_sides(row, stage):
    compare("pystalk", row, stage)


READY, BURIED = 2, 1  # job ids of the scene


def state(job_id: int, *expected: object) -> Callable[[Scene, Any], bool]:
    """The job has this state, priority and delay."""

    def holds(scene: Scene, result: Any) -> bool:
        stats = scene.watcher.stats_job(job_id)
        return (stats.state, stats.pri, stats.delay) == expected

    return holds


def gives(expected: object) -> Callable[[Scene, Any], bool]:
    return lambda scene, result: bool(result == expected)


def stored(scene: Scene, result: Any) -> bool:
    job = scene.watcher.peek(result)
    stats = scene.watcher.stats_job(result)
    return job is not None and (job.body, stats.tube, stats.pri, stats.ttr) == (b"hello", "mail", 5, 30)


AFTER: dict[str, Callable[[Scene, Any], bool]] = {
    "a Config": gives(gstalk.Config(multiply=3, num_greenlets=30)),
    "check URIs": lambda scene, result: result == [gstalk.parse_uri(scene["uri"])],
    "a Producer": lambda scene, result: scene["producer"].put("mail", b"") == 4,
    "put parameters": gives(gstalk.PutParams(5, 0, 30)),
    "put": stored,
    "put, within a second": stored,
    "stop a Producer": lambda scene, result: not scene["producer"].is_connected,
    "a Consumer": lambda scene, result: scene["handled"] == b"ready" and scene.watcher.peek(READY) is None,
    "stop a Consumer": lambda scene, result: gevent.wait([scene.receiving], 10) == [scene.receiving],
    "dial": lambda scene, result: scene["conn"].list_tubes_watched() == ["default"],
    "put on a Conn": stored,
    "watch": gives(2),
    "ignore": gives(1),
    "reserve": gives(b"ready"),
    "reserve, for a time": gives(b"ready"),
    "delete": lambda scene, result: scene.watcher.peek(READY) is None,
    "release": state(READY, "ready", 10, 0),
    "release with parameters": state(READY, "delayed", 7, 60),
    "bury": state(READY, "buried", 10, 0),
    "bury with a priority": state(READY, "buried", 7, 0),
    "touch": lambda scene, result: scene.watcher.stats().cmd_touch == 1,
    "time left until a touch is due": lambda scene, result: 50 < result <= 60,
    "kick": lambda scene, result: result == 1 and state(BURIED, "ready", 10, 0)(scene, result),
    "kick one job": state(BURIED, "ready", 10, 0),
    "peek at a delayed job": gives(b"delayed"),
    "peek at a buried job": gives(b"buried"),
    "statistics of a tube": lambda scene, result: (result.name, result.current_jobs_buried) == ("mail", 1),
    "all tubes": gives([b"default", b"mail"]),
    "close": lambda scene, result: not scene["conn"].is_connected,
}


@cases("prep/beanstalk")
def test_prep_row_does_what_it_says(row, stage):
    scene = stage("gstalk", row.gstalk)
    result = scene.run(row.gstalk)
    if not parse(row.gstalk)[1]:
        assert AFTER[row.what](scene, result)


def test_prep_rows_and_what_they_give_are_the_same_rows():
    assert AFTER.keys() == {row.what for row in rows("prep/beanstalk") if not parse(row.gstalk)[1]}


def test_prep_fields_exist():
    (table,) = re.findall(r"^\| prep/beanstalk \| gstalk \| .*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    names = re.findall(r"^\| `\w+` \| `(\w+)` ", table, re.MULTILINE)
    assert len(names) == 8
    assert set(names) <= {field.name for field in fields(gstalk.Config)}
