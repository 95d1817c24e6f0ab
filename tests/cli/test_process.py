"""`gstalk` as a process: exit codes, pipes that close, and ends at the worst moment."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd
from tests.cli.running import COMMAND, UNUSED, Outcome, finish, shell, start, states
from tests.servers import wait_until

HEAD = 3


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def on_server(uri: str, tube: str) -> list[bytes]:
    """The bodies of a tube's jobs, which are taken out."""
    done = shell(f"$G dump {tube} --yes", uri)
    assert done.code == 0, done.err
    return [json.loads(line)["body"].encode() for line in done.out.splitlines()]


def in_file(path: Path) -> list[bytes]:
    """The bodies of the complete lines of a dump."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line)["body"].encode() for line in lines[:-1]]


# -- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("$G put mail hello > /dev/null", 0, ""),
        ("$G peek 99", 1, "gstalk: peek 99 at {uri}: no such job\n"),
        ("$G nix", 2, "gstalk: no such command 'nix'; see 'gstalk --help'\n"),
        (
            "BEANSTALKD_URI=localhost:1 $G pause mail 1",
            3,
            f"gstalk: connect to beanstalk://{UNUSED}: connection refused\n",
        ),
    ],
)
def test_exit_code_and_sentence(own_server, line, code, err):
    assert shell(line, own_server.uri) == (code, "", err.format(uri=own_server.uri))


def test_ctrl_c_while_the_script_imports_is_one_sentence(tmp_path):
    """Most of the first half second goes into imports; here gevent's takes for ever."""
    (tmp_path / "gevent.py").write_text("import time; print('importing', flush=True)\nwhile True: time.sleep(0.01)")
    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from _gstalk_script import main; main()"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process: Any = subprocess.Popen([sys.executable, "-c", begin, "tubes"], **pipes)
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (1, "", "gstalk: interrupted\n")


# -- pipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe can't tell whether it was read")
def test_dump_reader_ends_loses_what_it_has_read_alone(own_server):
    """`head` prints three lines: three jobs are gone."""
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", numbered(500))
        done = shell(f"$G dump mail --yes | head -n {HEAD}", own_server.uri)
        assert (done.code, done.err) == (1, "3 jobs dumped\n")
        assert [json.loads(line)["body"] for line in done.out.splitlines()] == ["0", "1", "2"]
        wait_until(lambda: states(conn, "mail") == {"ready": 500 - HEAD})
    assert on_server(own_server.uri, "mail") == numbered(500)[HEAD:]


@pytest.mark.parametrize("reader", ["true", "exec <&-; sleep 0.5"])
def test_dump_nobody_reads_loses_nothing(own_server, reader):
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", numbered(100))
        done = shell(f"$G dump mail --yes | ({reader})", own_server.uri)
        assert (done.code, done.err) == (1, "0 jobs dumped\n")
        wait_until(lambda: states(conn, "mail") == {"ready": 100})


def test_dump_disk_full_loses_nothing(own_server):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", numbered(100))
        done = shell("$G dump mail --yes > /dev/full", own_server.uri)
        assert (done.code, done.err) == (1, "0 jobs dumped\ngstalk: No space left on device\n")
        wait_until(lambda: states(conn, "mail") == {"ready": 100})


@pytest.mark.parametrize(
    "line", ["seq 9999 | $G put mail --lines", "$G tubes", "$G stats --json", "$G peek 1", "$G --help"]
)
def test_result_nobody_reads_ends_quietly(own_server, line):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", b"x" * 65000)
        assert shell(f"{line} | true", own_server.uri).err == ""


def test_closed_streams_are_not_taken_for_read_or_written(own_server):
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", b"1")
        for line in ("$G dump mail --yes >&-", "$G tubes >&-"):
            done = shell(line, own_server.uri)
            assert done.code == 1
            assert done.err.endswith("gstalk: Bad file descriptor\n")
        assert states(conn, "mail") == {"ready": 1}
        assert shell("$G put mail <&- > /dev/null", own_server.uri) == (0, "", "")
        assert shell("$G delete 2>&-", own_server.uri).code == 0


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$G --uri 127.0.0.1:1 tubes 2>&-", 3),
        ("$G nonsense 2>&-", 2),
        ("$G stats --tube missing 2>&-", 1),
        ("$G put mail x --priority z 2>&-", 2),
        ("$G put mail --lines 2>&- < <(head -c 70000 /dev/zero; echo)", 1),
    ],
)
def test_exit_code_is_the_same_where_standard_error_is_closed(own_server, line, code):
    assert shell(line, own_server.uri).code == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("option", ["", "--patch", "--processes 1"])
def test_handler_that_prints_works_where_standard_streams_are_closed(own_server, tmp_path, option, closed):
    """As in any other Python program, what it prints goes nowhere."""
    (tmp_path / "printing.py").write_text(
        "import os, sys\n"
        "def handle(job):\n"
        "    print('out', flush=True)\n"
        "    print('err', file=sys.stderr, flush=True)\n"
        "    os.system('echo child')\n"
    )
    with gstalk.dial(own_server.uri) as conn:
        conn.put("mail", b"1")
        work = f"cd {tmp_path}; $G work printing:handle --tube mail --burst --auto-delete {option} {closed}"
        assert shell(work, own_server.uri).code == 0
        assert states(conn, "mail") == {}


def test_jobs_of_megabytes_go_round():
    """What is in flight is bounded in bytes, too."""
    body = os.urandom(5_000_000)
    with Beanstalkd("-z", "5000000") as server, gstalk.dial(server.uri) as conn:
        for _ in range(4):
            conn.put("mail", body)
        assert shell("$G dump mail --yes | $G load", server.uri).err == "4 jobs dumped\n"
        wait_until(lambda: states(conn, "mail") == {"ready": 4})
        assert shell("$G move mail fax", server.uri) == (0, "4 jobs moved\n", "")
        job = conn.peek_ready("fax")
        assert job is not None
        assert job.body == body


def test_dump_slow_reader_keeps_its_jobs(own_server):
    """While a reader takes longer than the jobs' ttr, nobody else gets them."""
    with gstalk.dial(own_server.uri) as conn, gstalk.dial(own_server.uri) as worker:
        conn.put_many("mail", [b"x" * 60000] * 5, ttr=2)
        worker.watch("mail")
        process = start("dump", "mail", "--yes", uri=own_server.uri)
        wait_until(lambda: states(conn, "mail") == {"reserved": 5}, 30)
        assert worker.reserve_with_timeout(3) is None
        outcome = finish(process)
        assert (outcome.code, outcome.err, len(outcome.out.splitlines())) == (0, "5 jobs dumped\n", 5)
        assert states(conn, "mail") == {}


def test_dump_interrupted_while_its_reader_sleeps_loses_nothing(own_server):
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", [b"x" * 60000] * 100)
        process = start("dump", "mail", "--yes", uri=own_server.uri)
        wait_until(lambda: states(conn, "mail").get("reserved", 0) > 5, 30)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None, 15)
        assert finish(process).err.split("\n", 1)[1].strip() == "gstalk: interrupted"
        assert states(conn, "mail") == {"ready": 100}


@pytest.mark.parametrize("arguments", [["dump", "mail", "--yes"], ["move", "mail", "fax"], ["purge", "mail", "--yes"]])
def test_server_killed_in_the_middle_is_told_in_one_sentence(own_server, arguments):
    with gstalk.dial(own_server.uri) as conn:
        conn.put_many("mail", numbered(50_000))
        process = start(*arguments, uri=own_server.uri, stdout=subprocess.DEVNULL)
        wait_until(lambda: (conn.stats().cmd_delete or 0) > 100, 30)
        own_server.kill()
        outcome = finish(process)
    assert outcome.code == 3
    told = [line for line in outcome.err.splitlines() if not line.endswith("jobs dumped")]
    assert len(told) == 1
    assert told[0].startswith("gstalk: ")


STRUCK = """
from gstalk.cli import cli, main

@cli.command()
def struck() -> None:
    exec("raise KeyboardInterrupt")

main(["struck"])
"""


def test_ctrl_c_in_a_text_that_is_executed_ends_as_any_other(tmp_path):
    """As in the making of a dataclass while a module is imported: Python remembers such a one though it was caught."""
    (tmp_path / "struck.py").write_text(STRUCK)
    command = [sys.executable, "-m", "struck"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    code, out, err = finish(process)
    assert (code, out, err.strip()) == (1, "", "gstalk: interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_load_interrupted_counts_exactly(own_server, tmp_path, number):
    (tmp_path / "jobs").write_text('{"tube": "mail", "body": "x"}\n' * 100_000)
    with gstalk.dial(own_server.uri) as conn:
        process = start("load", str(tmp_path / "jobs"), uri=own_server.uri)
        wait_until(lambda: states(conn, "mail"), 30)
        process.send_signal(number)
        outcome = finish(process)
        count = states(conn, "mail")["ready"]
        assert (outcome.code, outcome.out) == (1, f"{count:,} jobs loaded\n")
        assert outcome.err.strip() == "gstalk: interrupted"


def test_put_lines_puts_each_line_as_it_comes(own_server):
    process = start("put", "mail", "--lines", uri=own_server.uri)
    for number in (1, 2):
        process.stdin.write(b"line\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"%d\n" % number
    assert finish(process) == (0, "", "")


# -- ends at the worst moment --------------------------------------------------------------------------------------


def let_go(conn: gstalk.Conn, tube: str) -> bool:
    return "reserved" not in states(conn, tube)


def end_in_the_middle(
    process: Any, number: int, rng: random.Random, begun: Callable[[], Any], within: float
) -> Outcome:
    wait_until(begun, 30)
    gevent.sleep(rng.uniform(0, within))
    process.send_signal(number)
    return finish(process)


def balance(jobs: list[bytes], arrived: list[bytes], left: list[bytes], number: signal.Signals) -> dict[str, int]:
    """Nothing may be missing; after an orderly end nothing may be in both places."""
    assert set(arrived) | set(left) == set(jobs)
    doubled = len(arrived) + len(left) - len(jobs)
    assert doubled <= (64 if number == signal.SIGKILL else 0)
    return {"rounds": 1, "arrived": len(arrived), "left": len(left), "doubled": doubled}


@pytest.mark.limit(1200)
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_dump_ended_at_any_moment_loses_nothing(own_server, tmp_path, rng, many, figures, number):
    """What is complete in the file and what is on the server are all jobs; after an orderly end, each of them once."""
    jobs = numbered(2000)
    path = tmp_path / "jobs"
    total: Counter[str] = Counter()
    for _ in range(many(1, 100)):
        with gstalk.dial(own_server.uri) as conn:
            conn.put_many("mail", jobs)
            with path.open("wb") as file:
                process = start("dump", "mail", "--yes", uri=own_server.uri, stdout=file)
                end_in_the_middle(process, number, rng, lambda: path.stat().st_size, 0.2)
            wait_until(partial(let_go, conn, "mail"))
        dumped, left = in_file(path), on_server(own_server.uri, "mail")
        total.update(balance(jobs, dumped, left, number))
    figures.update(total)


@pytest.mark.limit(1200)
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_move_ended_at_any_moment_loses_nothing(own_server, rng, many, figures, number):
    jobs = numbered(2000)
    total: Counter[str] = Counter()
    with Beanstalkd() as second:
        for _ in range(many(1, 100)):
            with gstalk.dial(own_server.uri) as conn, gstalk.dial(second.uri) as other:
                conn.put_many("mail", jobs)
                process = start("move", "mail", "fax", "--to-uri", second.uri, uri=own_server.uri)
                end_in_the_middle(process, number, rng, partial(states, other, "fax"), 0.2)
                wait_until(partial(let_go, conn, "mail"))
            moved, left = on_server(second.uri, "fax"), on_server(own_server.uri, "mail")
            total.update(balance(jobs, moved, left, number))
    figures.update(total)


@pytest.mark.limit(600)
@pytest.mark.slow
@pytest.mark.soak
def test_load_killed_has_put_the_first_lines(own_server, tmp_path, rng, many, figures):
    """What was put is the file's beginning, without a hole: so one may go on behind it."""
    jobs = numbered(20000)
    path = tmp_path / "jobs"
    path.write_text("".join(json.dumps({"tube": "mail", "body": body.decode()}) + "\n" for body in jobs))
    total: Counter[str] = Counter()
    for _ in range(many(1, 50)):
        with gstalk.dial(own_server.uri) as conn:
            process = start("load", str(path), uri=own_server.uri)
            end_in_the_middle(process, signal.SIGKILL, rng, partial(states, conn, "mail"), 0.1)
        found = on_server(own_server.uri, "mail")
        assert found == jobs[: len(found)]
        total.update(rounds=1, loaded=len(found))
    figures.update(total)


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@pytest.mark.limit(1200)
@pytest.mark.slow
@pytest.mark.soak
def test_transfer_of_many_jobs_takes_bounded_memory(own_server, tmp_path, many, figures):
    """Put, dump, load, move and purge of a million jobs, each within 60 MiB."""
    count = many(5_000, 1_000_000)
    measure = [sys.executable, "-c", MEASURE, str(tmp_path / "peak"), *COMMAND]
    environment = {**os.environ, "BEANSTALKD_URI": own_server.uri}
    jobs, ids = tmp_path / "jobs", tmp_path / "ids"
    lines = tmp_path / "lines"
    with lines.open("w") as file:
        file.writelines(f"{number:011d}\n" for number in range(count))
    steps: list[tuple[list[str], Path, Path]] = [
        (["put", "mail", "--lines"], lines, ids),
        (["dump", "mail", "--yes"], Path(os.devnull), jobs),
        (["load"], jobs, ids),
        (["move", "mail", "fax"], Path(os.devnull), ids),
        (["purge", "fax", "--yes"], Path(os.devnull), ids),
    ]
    for arguments, source, target in steps:
        began = monotonic()
        with source.open("rb") as stdin, target.open("wb") as stdout:
            done = subprocess.run([*measure, *arguments], env=environment, stdin=stdin, stdout=stdout, timeout=900)
        assert done.returncode == 0
        seconds = monotonic() - began
        peak = int((tmp_path / "peak").read_text()) / 1024
        figures[arguments[0]] = f"{seconds:.0f} s and {peak:.0f} MiB"
        assert peak < 60
        if arguments[0] == "dump":
            assert jobs.read_bytes().count(b"\n") == count
    figures["jobs"] = count
