"""`gstalk demo`: it says what it shows, accounts for every job, and ends at Ctrl-C as a worker does."""

from __future__ import annotations

import json
import re
from time import monotonic

import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.cli.running import COMMAND, run, start
from tests.cli.terminal import Terminal

SHOWN = "gstalk: {} jobs on {}\n  a Producer puts them, a Consumer works them off in 30 greenlets\n"


def test_demo_says_what_it_shows(own_server: Beanstalkd) -> None:
    code, out, err = run("demo", "--jobs", "2000", "--json", uri=own_server.uri)
    result = json.loads(out)
    assert code == 0
    counts = {name: result[name] for name in ("jobs_put", "jobs_done", "jobs_retried", "jobs_buried")}
    assert counts == {"jobs_put": 2000, "jobs_done": 1998, "jobs_retried": 20, "jobs_buried": 2}
    assert err == (
        SHOWN.format("2,000", own_server.uri)
        + "  20 are made to fail once, and are tried again\n"
        + "  2 are made to fail for good, and end buried\n"
        + "".join(f"gstalk: {done} of 2,000 jobs worked off\n" for done in ("500", "1,000", "1,500", "2,000"))
        + "gstalk: now 300 jobs one by one, to a Consumer that has nothing else to do\n"
    )
    assert tubes(own_server) == ["default"]


def test_demo_needs_no_server_and_prints_a_table() -> None:
    """The last job of a thousand is one that ends buried."""
    code, out, err = run("demo", "--jobs", "1000")
    assert code == 0
    assert err.startswith(SHOWN.format("1,000", "the embedded server"))
    assert re.search(r"^jobs put +1,000\njobs done +999\njobs retried +10\njobs buried +1\n", out, re.MULTILINE)


@pytest.mark.timing
def test_demo_ctrl_c_ends_it_as_a_worker_and_leaves_nothing(own_server: Beanstalkd) -> None:
    with Terminal([*COMMAND, "--uri", own_server.uri, "demo", "--jobs", "500000"]) as seen:
        seen.wait_for("working off")
        seen.wait_for("/500000")
        struck = monotonic()
        seen.type("\x03")
        assert seen.finish() == 1
        assert monotonic() - struck < 3  # a third of a second where nothing else runs; half a million jobs took 15
        said = " ".join(seen.picture.text.split())
    found = re.search(
        r"gstalk: stopped as a worker stops: no more jobs were reserved, running handlers ended "
        r"([\d,]+) of 500,000 jobs were worked off; the rest of those put is deleted gstalk: interrupted$",
        said,
    )
    assert found is not None, said
    assert int(found[1].replace(",", "")) < 500_000
    assert tubes(own_server) == ["default"]


def test_demo_ctrl_c_while_the_latency_is_measured_leaves_nothing(own_server: Beanstalkd) -> None:
    process = start("demo", "--jobs", "100", uri=own_server.uri)
    for line in process.stderr:
        if line.startswith(b"gstalk: now 300 jobs"):
            process.send_signal(2)
            break
    assert b"gstalk: stopped as a worker stops: " in process.stderr.read()
    assert process.wait() == 1
    process.stdout.close()
    process.stderr.close()
    process.stdin.close()
    assert tubes(own_server) == ["default"]


def tubes(server: Beanstalkd) -> list[str]:
    with gstalk.dial(server.uri) as conn:
        return conn.list_tubes()
