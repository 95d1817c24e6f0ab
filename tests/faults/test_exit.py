"""Programs end by themselves: no connection, no pool and no outage holds them up. Each one is a real process."""

from __future__ import annotations

import signal
from time import monotonic

import pytest

from gstalk.testing import Beanstalkd
from tests.conftest import SOAK
from tests.faults.programs.running import Program, run
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timing]

AT_ONCE = 3.0  # seconds; a wait that holds a program up lasts 5 or more, and a busy machine takes one to end a program
QUIET = [
    "conn_puts",
    "conn_idles",
    "conn_was_called_back",
    "conn_holds_a_job",
    "producer_puts",
    "producer_idles",
]
ENDS = [
    *QUIET,
    "producer_in_a_greenlet",
    "consumer_received",
    "consumer_still_receives",
]
IDLE = [*QUIET, "producer_looks", "producer_looked"]


# Each test runs over both, with and without the monkey; `make soak` crosses them.
WHERE = [("tcp", "unpatched"), ("tls", "patched")] + [("tcp", "patched"), ("tls", "unpatched")] * SOAK


@pytest.fixture(params=WHERE, ids="-".join)
def where(request: pytest.FixtureRequest, server: Beanstalkd) -> tuple[str, str, str]:
    """A server's URI, by its name so that DNS has a part in it; whether to patch; and the CA to trust."""
    scheme, patched = request.param
    if scheme == "tcp":
        return f"beanstalk://localhost:{server.port}", patched, ""
    terminator, certificates = request.getfixturevalue("terminator"), request.getfixturevalue("certificates")
    return terminator.uri("good"), patched, str(certificates / "ca.crt")


@pytest.fixture
def nowhere(where: tuple[str, str, str]) -> tuple[str, str, str]:
    return "beanstalk://127.0.0.1:1", where[1], ""


@pytest.mark.parametrize("scenario", ENDS)
def test_script_that_ends_without_stop_exits_by_itself(where, scenario):
    (ended,) = run("exits", scenario, *where)
    assert monotonic() - ended < AT_ONCE


def test_script_whose_producer_never_found_its_server_exits_by_itself(nowhere):
    (ended,) = run("exits", "producer_without_server", *nowhere)
    assert monotonic() - ended < AT_ONCE


@pytest.mark.parametrize("scenario", IDLE)
def test_wait_for_everything_is_not_held_up_by_what_is_idle(where, scenario):
    assert max(run("exits", f"wait beside {scenario}", *where)) < AT_ONCE


def test_wait_for_everything_is_not_held_up_by_an_outage(nowhere):
    assert max(run("exits", "wait beside producer_without_server", *nowhere)) < AT_ONCE


def test_wait_for_everything_waits_for_a_reserve(where):
    """Else the two above could not fail."""
    assert min(run("exits", "wait beside busy", *where)) > 0.4


@pytest.mark.parametrize("call", ["reserve", "reserve_with_timeout", "reserve_called_back", "reserve_holding"])
def test_ctrl_c_ends_a_blocking_reserve_at_once(where, call):
    with Program("exits", f"interrupted {call}", *where) as program:
        assert program.read() == "waits"
        wait_until(lambda: program.sleeps)  # see docs/cancellation.md for the instant before
        begin = monotonic()
        program.process.send_signal(signal.SIGINT)
        code, (caught,), errors = program.end()
    assert caught - begin < AT_ONCE
    assert monotonic() - caught < AT_ONCE
    assert code == 0
    if call in ("reserve", "reserve_with_timeout"):  # the others ask all the time, and it may hit that
        assert "gstalk/" not in errors  # gevent itself tells of a Ctrl-C that hit a greenlet


def test_ctrl_c_that_nobody_catches_ends_the_process_at_once(where):
    with Program("exits", "interrupted uncaught", *where) as program:
        assert program.read() == "waits"
        wait_until(lambda: program.sleeps)  # see docs/cancellation.md for the instant before
        begin = monotonic()
        program.process.send_signal(signal.SIGINT)
        code, said, errors = program.end()
    assert monotonic() - begin < AT_ONCE
    assert (code, said) == (-signal.SIGINT, [])
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_conn_that_nobody_refers_to_closes_its_socket_with_a_warning(where):
    with Program("exits", "dropped", *where, flags=("-Walways::ResourceWarning",)) as program:
        code, said, errors = program.end()
    assert (code, said) == (0, [1, 0])
    assert errors.count("ResourceWarning: unclosed connection to") == 1
