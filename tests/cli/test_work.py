"""`gstalk work`: real processes, real signals, a real server."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import click
import gevent
import pytest

import gstalk
from gstalk.cli import _tubes
from gstalk.cli._load import Unusable, load
from gstalk.cli._lookout import LONG
from gstalk.cli._sources import Sources
from gstalk.cli.work import work
from gstalk.testing import Beanstalkd
from tests.cli.working import ROOT, TASKS, Working, counts
from tests.servers import Played, ok, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BURST = ("--burst", "--auto-delete")


# -- the handler -------------------------------------------------------------------------------------------------

PLAIN = "must be a plain function, which runs to its end when it is called; this one is"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("tasks", "'tasks' is not of the form MODULE:HANDLER, such as app.tasks:handle"),
        ("tasks.py:quick ", "'tasks.py:quick ' is not of the form MODULE:HANDLER, such as app.tasks:handle"),
        ("nowhere.tasks:quick", "there is no module 'nowhere' in {place} or on Python's path"),
        ("tasks.deeper:quick", "there is no module 'tasks.deeper' in {place} or on Python's path"),
        ("tasks:nothing", "module 'tasks' has no 'nothing'"),
        ("tasks:number", "tasks:number must be callable, got int"),
        ("tasks:waits", f"tasks:waits {PLAIN} async def: a call of it would run nothing"),
        ("tasks:by_tube_async", f"tasks:by_tube_async {PLAIN} async def: a call of it would run nothing"),
        ("tasks:yields", f"tasks:yields {PLAIN} a generator function (it has a yield): a call of it would run nothing"),
        (
            "tasks:none",
            "tasks:none is called with one argument, which this one can't be: too many positional arguments",
        ),
        ("tasks:by_tube", "tasks:by_tube has no handler for tube 'c'"),
    ],
)
def test_target_that_is_no_handler_is_told(tmp_path, monkeypatch, target, sentence):
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Unusable) as caught:
        load(target, ["c"])
    if module := sys.modules.pop("tasks", None):
        os.close(module.LOG)
    assert caught.value.format_message() == sentence.format(place=tmp_path)


def test_target_that_is_a_mapping_of_str_enums_is_by_the_tubes_that_they_hold(tmp_path, monkeypatch):
    (tmp_path / "enums.py").write_text(
        "import enum\nclass Tube(str, enum.Enum):\n    C = 'c'\nby_tube = {Tube.C: print}\nwrong = {5: print}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert load("enums:by_tube", ["c"]) == {"c": print}
        with pytest.raises(Unusable, match="^enums:wrong: tube must be a str, got int$"):
            load("enums:wrong", ["c"])
    finally:
        sys.modules.pop("enums", None)


def test_target_that_is_no_handler_ends_the_worker_with_one_sentence(start):
    worker = start("tasks:nothing")
    assert worker.end() == 2
    assert worker.errors == "gstalk: module 'tasks' has no 'nothing'\n"


def test_target_whose_call_would_run_nothing_is_wrong_usage_and_its_jobs_stay(start, conn, tube):
    """It once said "10 jobs done", and nothing was."""
    job_id = conn.put(tube, b"x")
    worker = start("tasks:yields", *BURST)
    assert worker.end() == 2
    assert worker.errors == (
        f"gstalk: tasks:yields {PLAIN} a generator function (it has a yield): a call of it would run nothing\n"
    )
    assert conn.stats_job(job_id).reserves == 0


def test_handler_that_gives_back_a_coroutine_has_failed(start, conn, tube):
    job_id = conn.put(tube, b"x")
    worker = start("tasks:waits_in_a_lambda", *BURST)
    assert worker.end() == 0
    assert "0 jobs done, 1 failed" in worker.errors
    assert "never awaited" not in worker.errors
    assert conn.stats_job(job_id).state == "delayed"


def test_several_processes_whose_target_is_no_handler_end(start):
    worker = start("tasks:nothing", "--processes", "2")
    assert worker.end() == 2
    assert "gstalk: module 'tasks' has no 'nothing'\n" in worker.errors


def test_module_that_raises_is_shown_from_its_first_line_on(start, tmp_path):
    (tmp_path / "broken.py").write_text("import gevent\nnumber = 1 / 0\n")
    worker = start("broken:handle")
    assert worker.end() == 1
    assert worker.errors.splitlines()[0:2] == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path / "broken.py"}", line 2, in <module>',
    ]
    assert worker.errors.endswith("gstalk: importing broken failed: ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("option", [("--tube", "a b"), ("--time-limit", "nan"), ("--stop-timeout", "inf")])
def test_option_that_the_library_refuses_is_wrong_usage(start, option):
    worker = start("tasks:quick", *option)
    assert worker.end() == 2
    assert re.fullmatch(r"gstalk: .*; see 'gstalk work --help'\n", worker.errors)


# -- its work ----------------------------------------------------------------------------------------------------


def test_verbose_worker_writes_a_line_for_each_job_and_never_a_body(start, conn):
    conn.put("a", b"secret-one")
    conn.put("b", b"secret-two")
    worker = start("tasks:by_tube", "-v", *BURST, tubes=("a", "b"))
    assert worker.end() == 0
    lines = re.findall(r" INFO (job \d+ of .*), \d+\.\d{3} s\n", worker.errors)
    assert sorted(re.sub(r"\d+", "N", line) for line in lines) == [
        "job N of a: done",
        "job N of b: failed with ValueError",
    ]
    assert "ValueError: no" in worker.errors  # its stack
    assert "secret" not in worker.errors
    assert counts(conn, "b") == (0, 0, 1, 0)  # to be tried again


def test_verbose_workers_records_tell_the_job_and_its_outcome(start, conn, tmp_path):
    """To a program that has its own logging; as the records of failures do."""
    ids = [conn.put("a", b"x"), conn.put("b", b"x")]
    (tmp_path / "app.py").write_text(
        "import logging, tasks\n"
        'logging.basicConfig(format="%(name)s %(job_id)s %(tube)s %(outcome)s %(duration).0f")\n'
        "by_tube = tasks.by_tube\n"
    )
    worker = start("app:by_tube", "-v", *BURST, tubes=("a", "b"))
    assert worker.end() == 0
    found = set(re.findall(r"^gstalk.*? \d+ .*? \w+ 0$", worker.errors, re.MULTILINE))
    assert found >= {  # another test may have left jobs in these tubes
        f"gstalk.work {ids[0]} a done 0",
        f"gstalk.work {ids[1]} b failed 0",
        f"gstalk {ids[1]} b released 0",
    }


def test_options_reach_the_consumer(start, conn, tube):
    conn.put(tube, b"x")
    worker = start("tasks:hangs", "--time-limit", "0.1", "--max-attempts", "1", "--multiply", "3", "--greenlets", "2")
    worker.wait_noted("begun")
    wait_until(lambda: counts(conn, tube) == (0, 0, 0, 1))
    assert "3" in re.findall(r"connections to each server: (\d)", worker.errors)
    wait_until(lambda: conn.stats_tube(tube).current_watching == 4)


def test_worker_waits_for_a_server_that_is_not_there_yet(start, tube):
    with Beanstalkd() as server:
        server.kill()
        worker = start("tasks:quick", uri=server.uri)
        worker.wait_said("connection refused")
        server.start()
        with gstalk.dial(server.uri) as conn:
            conn.put(tube, b"x")
        worker.wait_noted("done")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0


# -- its end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("args", [("--patch",), ("--processes", "2")], ids=["patched", "two"])
def test_first_signal_lets_handlers_finish(start, conn, tube, number, args):
    conn.put_many(tube, [b"x"] * 20)
    worker = start("tasks:half_a_second", "--greenlets", "3", *args)
    worker.wait_noted("begun", 3 * (1 + ("--processes" in args)))
    worker.signal(number)
    assert worker.end() == 0
    done = worker.noted("done")
    assert sorted(done) == sorted(worker.noted("begun"))
    assert counts(conn, tube)[:2] == (20 - len(done), 0)


@pytest.mark.parametrize("args", [(), ("--processes", "2")], ids=["one", "two"])
def test_second_signal_ends_it_at_once(start, conn, tube, args):
    conn.put_many(tube, [b"x"] * 2)
    worker = start("tasks:hangs", "--greenlets", "1", *args)
    worker.wait_noted("begun", 1 + bool(args))
    worker.signal(signal.SIGTERM)
    worker.wait_said("stops")
    gevent.sleep(0.1)
    assert worker.process.poll() is None
    worker.signal(signal.SIGINT)
    assert worker.end(10) == 1
    assert counts(conn, tube) == (2, 0, 0, 0)


def test_second_signal_ends_a_handler_that_keeps_the_hub(start, conn, tube):
    """In Python, where signals are handled; or in C, where they aren't."""
    conn.put_many(tube, [b"x"] * 2, ttr=1000)
    blocked, deaf = start("tasks:blocks", "--greenlets", "1"), start("tasks:blocks_in_c", "--greenlets", "1")
    blocked.wait_noted("begun", 2)
    for worker in (blocked, deaf):
        worker.signal(signal.SIGTERM)
    blocked.wait_said("stops")
    deaf.wait_said("can't stop yet")
    for worker in (blocked, deaf):
        worker.signal(signal.SIGTERM)
    assert [worker.end(10) for worker in (blocked, deaf)] == [1, 1]
    wait_until(lambda: counts(conn, tube) == (2, 0, 0, 0))


def test_blocked_process_whose_parent_is_gone_ends_by_itself(start, conn, tube):
    conn.put(tube, b"x", ttr=1000)
    worker = start("tasks:blocks", "--hang-timeout", "1")
    worker.wait_noted("begun")
    worker.signal(signal.SIGKILL)
    assert worker.end(10) == -signal.SIGKILL  # all that have its standard error
    wait_until(lambda: counts(conn, tube) == (1, 0, 0, 0))


@pytest.mark.parametrize("args", [(), ("--processes", "2")], ids=["one", "two"])
def test_ctrl_c_in_a_terminal_hits_all_and_is_polite(start, conn, tube, args):
    """A terminal sends it to the whole group; so does a service manager with SIGTERM."""
    conn.put_many(tube, [b"x"] * 2)
    worker = start("tasks:half_a_second", "--greenlets", "1", *args)
    worker.wait_noted("begun", 1 + bool(args))
    os.killpg(worker.process.pid, signal.SIGINT)
    assert worker.end() == 0
    assert sorted(worker.noted("done")) == sorted(worker.noted("begun"))


def test_handlers_that_need_too_long_are_cut_off_and_told(start, conn, tube):
    job_id = conn.put(tube, b"x")
    worker = start("tasks:hangs", "--stop-timeout", "0.1", "-v")
    worker.wait_noted("begun")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 1
    assert re.search(rf"job {job_id} of {tube}: cut off, and released, \d\.\d+ s\n", worker.errors)
    assert counts(conn, tube) == (1, 0, 0, 0)


def test_burst_ends_when_nothing_is_ready_or_reserved_by_anybody(start, conn, tube):
    conn.put_many(tube, [b"mine"] * 5)
    conn.put(tube, b"elsewhere", priority=0)
    conn.put(tube, b"later", delay=1000)
    held = conn.reserve()
    worker = start("tasks:returns", *BURST)
    worker.wait_noted("done", 5)
    gevent.sleep(0.5)
    assert worker.process.poll() is None
    held.release()
    assert worker.end() == 0
    assert {body for body, _ in worker.noted("done")} == {b"mine", b"elsewhere"}
    assert counts(conn, tube) == (0, 0, 1, 0)


def test_burst_without_a_server_ends_with_3(start):
    worker = start("tasks:returns", *BURST, uri="127.0.0.1:1")
    assert worker.end() == 3
    assert "127.0.0.1:1" in worker.errors


def test_emptiness_is_believed_when_nothing_was_put_between_two_looks(play):
    """A handler that puts into a tube already seen empty, and then finishes its job in one not yet seen."""

    def stats(ready: int, total: int) -> bytes:
        return ok(f"---\ncurrent-jobs-ready: {ready}\ncurrent-jobs-reserved: 0\ntotal-jobs: {total}\n")

    looks = [stats(0, 1), stats(0, 1), stats(0, 2), stats(0, 1), stats(1, 3), stats(0, 3), stats(0, 1)]
    played: Played = play({"stats-tube": [*looks, stats(0, 3), stats(0, 1)]})
    _tubes.until_empty([played.uri], ["a", "b"], gevent.event.Event())
    assert [line.decode()[-1] for line in played.lines if line.startswith(b"stats-tube")] == list("ababaabab")


def test_emptiness_is_asked_for_again_when_a_server_comes_back(own_server, monkeypatch):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("a", b"x")
    looking = gevent.spawn(_tubes.until_empty, [own_server.uri], ["a"], gevent.event.Event())
    gevent.sleep(0.1)
    own_server.kill()
    gevent.sleep(0.3)
    assert not looking.ready()
    own_server.start()  # without the job
    looking.get(timeout=10)
    monkeypatch.setattr(_tubes, "PATIENCE", 0.3)
    with gstalk.dial(own_server.uri) as conn:
        conn.put("a", b"x")
    looking = gevent.spawn(_tubes.until_empty, [own_server.uri], ["a"], gevent.event.Event())
    gevent.sleep(0.1)
    own_server.kill()
    with pytest.raises(gstalk.DisconnectedError):
        looking.get(timeout=10)


def test_max_jobs_are_done_and_no_more(start, conn, tube):
    conn.put_many(tube, [b"x"] * 50)
    worker = start("tasks:quick", "--max-jobs", "17", "--greenlets", "5")
    assert worker.end() == 0
    assert len(worker.noted("done")) == len(worker.noted("begun")) == 17
    assert counts(conn, tube) == (33, 0, 0, 0)
    assert "17 jobs done, 0 failed, 0 cut off" in worker.errors


def test_one_job_is_told_in_the_singular(start, conn, tube):
    conn.put(tube, b"x")
    worker = start("tasks:quick", "--max-jobs", "1")
    assert worker.end() == 0
    assert "stopped: 1 job done, 0 failed, 0 cut off" in worker.errors


def test_process_that_did_its_jobs_is_followed_by_another(start, conn, tube):
    conn.put_many(tube, [b"%d" % number for number in range(25)])
    worker = start("tasks:quick", "--max-jobs", "10", "--processes", "1", "--burst")
    assert worker.end() == 0
    done = worker.noted("done")
    assert sorted(int(body) for body, _ in done) == list(range(25))
    assert len({pid for _, pid in done}) == 3


@pytest.mark.parametrize("args", [(), ("--processes", "1")], ids=["one", "child"])
def test_worker_that_nobody_listens_to_ends_politely(start, conn, tube, args):
    conn.put(tube, b"x")
    worker = start("tasks:half_a_second", "-v", *args)
    worker.wait_noted("begun")
    worker.deafen()
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(timeout=30) == 0
    assert len(worker.noted("done")) == 1
    wait_until(lambda: counts(conn, tube) == (0, 0, 0, 0))


# -- how it is started -------------------------------------------------------------------------------------------

PATCHED = """
import socket, threading
import gevent.monkey, gevent.socket, rich.progress
assert gevent.monkey.is_module_patched("socket")
assert socket.socket is gevent.socket.socket
assert rich.progress.RLock is threading.RLock  # imported by gstalk's command line: after the patch, too
from tasks import returns
"""


@pytest.mark.parametrize("args", [(), ("--processes", "1")], ids=["one", "child"])
def test_patch_comes_before_everything(start, conn, tube, tmp_path, args):
    (tmp_path / "patched.py").write_text(PATCHED)
    conn.put(tube, b"x")
    worker = start("patched:returns", "--patch", *BURST, *args)
    assert worker.end() == 0
    assert len(worker.noted("done")) == 1


def test_without_patch_nothing_is_patched(start, tmp_path):
    (tmp_path / "patched.py").write_text(PATCHED)
    assert start("patched:returns", *BURST).end() == 1


@pytest.mark.parametrize("args", [(), ("--processes", "1")], ids=["one", "child"])
def test_reload_starts_anew_when_a_file_changes(start, conn, tube, tmp_path, args):
    (tmp_path / "helped.py").write_text("import tasks\ndef handle(job): tasks.returns(job)\n")
    worker = start("helped:handle", "--reload", "--auto-delete", *args)
    conn.put(tube, b"old")
    worker.wait_noted("done")
    (tmp_path / "helped.py").write_text("import tasks\ndef handle(job: tasks.returns(job)\n")
    worker.wait_said("SyntaxError")
    assert "helped.py has changed: restarting" in worker.errors
    conn.put(tube, b"new")
    (tmp_path / "helped.py").write_text("import tasks\ndef handle(job): tasks.note(b'reloaded', job)\n")
    worker.wait_noted("reloaded")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    assert counts(conn, tube) == (0, 0, 0, 0)


@pytest.fixture
def sources(monkeypatch, tmp_path) -> Iterator[Sources]:
    """They watch what is imported from now on, and the test's directory is where modules come from."""
    monkeypatch.setattr(SourceFileLoader, "path_stats", SourceFileLoader.path_stats)  # put back at the end
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    yield Sources()
    for name in [name for name in sys.modules if name.startswith("watched_")]:
        del sys.modules[name]


def later(path: Path) -> None:
    """Have a file look as if it was written a second later."""
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1))


def test_file_that_changes_behind_its_import_is_seen_once_it_has(sources, tmp_path):
    module = tmp_path / "watched_first.py"
    module.write_text("")
    importlib.import_module("watched_first")
    assert sources.changed() is None
    later(module)
    assert sources.changed() == str(module)


def test_file_that_changes_while_it_is_imported_is_seen(sources, tmp_path):
    """A look at its time behind that would be too late."""
    module = tmp_path / "watched_second.py"
    module.write_text("import os\nos.utime(__file__, (1, 1))\n")
    importlib.import_module("watched_second")
    assert sources.changed() == str(module)


def test_file_that_could_not_be_imported_is_seen_when_it_is_mended(sources, tmp_path):
    module = tmp_path / "watched_third.py"
    module.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("watched_third")
    assert sources.changed() is None
    later(module)
    assert sources.changed() == str(module)


def test_file_that_is_just_being_replaced_has_not_changed_yet(sources, tmp_path):
    module = tmp_path / "watched_fourth.py"
    module.write_text("")
    importlib.import_module("watched_fourth")
    away = module.rename(tmp_path / "away")
    assert sources.changed() is None
    away.rename(module)
    assert sources.changed() is None
    later(module)
    assert sources.changed() == str(module)


def test_modules_that_are_no_files_or_make_up_what_they_are_asked_for_are_let_be(sources, monkeypatch):
    class Eager(ModuleType):
        def __getattr__(self, name: str) -> str:
            raise AssertionError

    odd = ModuleType("odd")
    odd.__file__ = 7  # type: ignore[assignment]
    for name, module in {"odd": odd, "eager": Eager("eager"), "slotted": object()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert sources.changed() is None


def test_signal_ends_a_worker_that_waits_for_a_file_to_be_mended(start, tmp_path):
    (tmp_path / "broken.py").write_text("number = 1 / 0\n")
    worker = start("broken:handle", "--reload")
    worker.wait_said("ZeroDivisionError")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0


# -- a look at it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "args"),
    [("hangs", ()), ("blocks", ()), ("blocks_in_c", ()), ("hangs", ("--processes", "1"))],
)
def test_usr1_tells_what_each_greenlet_does(start, conn, tube, handler, args):
    job_id = conn.put(tube, b"secret")
    worker = start(f"tasks:{handler}", *args)
    worker.wait_noted("begun")
    worker.signal(signal.SIGUSR1)
    worker.wait_said(" others in ")
    assert re.search(
        rf"  job {job_id} of {tube} for \d+\.\d s\n    .*/tasks.py:\d+, in {handler}: .*(?:sleep|lock)", worker.errors
    )
    assert "1 of 10 greenlets have a job" in worker.errors
    assert "  9 others in " in worker.errors
    assert "secret" not in worker.errors
    if handler == "blocks":
        gevent.sleep(LONG + 0.5)  # nobody says it a second time, though the event loop stands still
    assert worker.errors.count("greenlets have a job") == 1
    assert worker.process.poll() is None


# -- several processes -------------------------------------------------------------------------------------------


def children(worker: Working, count: int) -> list[int]:
    """The processes that have begun jobs."""
    wait_until(lambda: len({pid for _, pid in worker.noted("begun")}) >= count, 30)
    return sorted({pid for _, pid in worker.noted("begun")})


def test_parent_restarts_a_child_that_was_killed(start, conn, tube):
    conn.put_many(tube, [b"x"] * 2)
    worker = start("tasks:hangs", "--greenlets", "1", "--processes", "2")
    killed = children(worker, 2)[0]
    os.kill(killed, signal.SIGKILL)
    worker.wait_said(f"process {killed} was killed by signal 9; the next one starts in 0.5 s")
    worker.wait_noted("begun", 3)  # the killed one's job
    assert killed not in {pid for _, pid in worker.noted("begun")[2:]}
    worker.signal(signal.SIGQUIT)
    assert worker.end() == 1


def test_pauses_between_restarts_grow(start, tmp_path):
    (tmp_path / "fatal.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    worker = start("fatal:handle", "--processes", "1")
    worker.wait_said("starts in 0.5 s")
    worker.wait_said("starts in 1 s")
    worker.wait_said("starts in 2 s")
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0


def test_children_end_politely_when_their_parent_is_killed(start, conn, tube):
    conn.put_many(tube, [b"x"] * 2)
    worker = start("tasks:half_a_second", "--greenlets", "1", "--processes", "2")
    children(worker, 2)
    worker.signal(signal.SIGKILL)
    assert worker.end() == -signal.SIGKILL
    assert worker.errors.count("stops: its parent is gone") == 2
    assert sorted(worker.noted("done")) == sorted(worker.noted("begun"))
    assert counts(conn, tube) == (0, 0, 0, 0)


# -- docs/worker.md ----------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "worker.md").read_text(encoding="utf-8")


def test_page_names_every_option():
    named = set(re.findall(r"^\| `(--[a-z-]+)|^\| `-\w`, `(--[a-z-]+)", PAGE, re.MULTILINE))
    assert {one or other for one, other in named} == {
        parameter.opts[-1] for parameter in work.params if isinstance(parameter, click.Option) and not parameter.hidden
    }


def test_handler_of_the_page_works(start, conn, tube, tmp_path):
    (snippet,) = re.findall(r"```python\n# app/tasks.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "tasks.py").write_text(snippet)
    conn.put(tube, b"x")
    assert start("app.tasks:handle", "--auto-delete", "--burst").end() == 0
    assert counts(conn, tube) == (0, 0, 0, 0)


# -- no job is lost ----------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.limit(3000)
@pytest.mark.parametrize("processes", [1, 2])
def test_random_signals_lose_no_job(start, conn, tube, rng, many, figures, processes):
    """SIGTERM, SIGKILL and SIGHUP at random moments, to the worker or a child of it: each job is done, and few twice.

    Twice: what was in hand when a process was killed. A polite end, or a new beginning, repeats nothing, and leaves
    nothing reserved.
    """
    signals, greenlets = many(6, 100), 10
    args = ("--greenlets", str(greenlets), *(("--processes", str(processes)) if processes > 1 else ()))
    put = killed = 0
    worker: Working | None = None
    begins_anew = False  # then it isn't known which children are there
    sent: Counter[str] = Counter()
    while sent.total() < signals:
        put += len(conn.put_many(tube, [b"%d" % (put + number) for number in range(200)]))
        if worker is None:
            worker = start("tasks:quick", *args)
            worker.wait_noted("begun", len(worker.noted("begun")) + 1)
        gevent.sleep(rng.uniform(0, 0.1))
        number = rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
        started = re.findall(r"process (\d+) started", worker.errors)
        if number == signal.SIGHUP:
            worker.signal(number)
            sent["SIGHUP to the worker"] += 1
            begins_anew = True
            gevent.sleep(rng.uniform(0, 1.5))
        elif processes > 1 and rng.random() < 0.4 and not begins_anew:
            child = rng.choice(started[-processes:])
            if f"process {child} " in worker.errors.replace(f"process {child} started", ""):
                continue  # that one has ended, and the next one is not there yet
            os.kill(int(child), number)
            # One that was just being started dies of SIGTERM, too.
            # 1: it was polite before the worker had begun.
            worker.wait_said(rf"process {child} (was killed by signal {number:d}|ended with [01]);")
            sent[f"{number.name} to a child"] += 1
        else:
            worker.signal(number)
            assert worker.end() == (0 if number == signal.SIGTERM else -signal.SIGKILL), worker.errors
            if number == signal.SIGTERM:
                assert counts(conn, tube)[1:] == (0, 0, 0), worker.errors
            sent[f"{number.name} to the worker"] += 1
            worker, begins_anew = None, False
        killed += number == signal.SIGKILL
    if worker is not None:
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0, worker.errors
    last = start("tasks:quick", "--burst", *args)
    assert last.end(120) == 0, last.errors
    done = [int(body) for body, _ in last.noted("done")]
    begun = [int(body) for body, _ in last.noted("begun")]
    again = len(begun) - len(set(begun))
    figures |= {**sent, "jobs": put, "begun twice": again, "noted done": len(done)}
    assert set(begun) == set(range(put))
    assert counts(conn, tube) == (0, 0, 0, 0)
    assert conn.stats_tube(tube).cmd_delete == put
    assert again <= killed * greenlets
