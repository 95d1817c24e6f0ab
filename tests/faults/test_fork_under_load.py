"""Forks under load, as a preloading server's: the parent notices nothing, and its children work on their own.

What is made before the fork, and how it is used, is in `programs/preload.py`. Each style of forking runs once, in a
process of its own; the tests look at what parent and children printed.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gstalk.testing import Beanstalkd, FaultProxy
from tests.conftest import SOAK
from tests.faults.programs.running import Program, run
from tests.servers import Terminator, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

CHILDREN = 8
CONNECTIONS = 4  # of each child: a Producer's two, a Consumer's and a Conn's
FORKS = 30 if SOAK else 6  # of a program whose hooks let the hub run
CONNECTIONS_WITH_HOOKS = 3  # of each of its children: a Producer's two, and a Conn's
STYLES = ["gevent", "patched", "multiprocessing", "bare"]
WAYS = [(style, "tcp") for style in STYLES] + [("gevent", "tls"), ("patched", "tls")]


def place(style: str, scheme: str, server: Beanstalkd, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Where the server is, by its name unless the fork is a bare one, and the CA to trust."""
    if scheme == "tcp":
        return f"beanstalk://{'127.0.0.1' if style == 'bare' else 'localhost'}:{server.port}", ""
    certificates = request.getfixturevalue("certificates")
    terminator = Terminator(certificates, server.port)
    terminator.start()
    request.addfinalizer(terminator.kill)
    return terminator.uri("good"), str(certificates / "ca.crt")


class Seen:
    """What a run of `preload` printed."""

    def __init__(self, said: list[Any], errors: str) -> None:
        *self.children, self.parent = said
        self.errors = errors


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    style, scheme = request.param
    with Beanstalkd() as server, Program("preload", style, *place(style, scheme, server, request)) as program:
        code, said, errors = program.end()
        assert code == 0, errors
        yield Seen(said, errors)


def test_parent_notices_nothing(seen):
    parent = seen.parent
    assert parent["problems"] == []  # no error, no reply that is another's, no connection lost
    assert parent["put"] >= 100 * CHILDREN
    assert (parent["lost"], parent["doubled"], parent["all handled"]) == (0, 0, True)


def test_jobs_of_the_parent_stay_its_own(seen):
    assert seen.parent["reserved"] == 5
    assert seen.parent["deleted"] == ["done"] * 5
    assert seen.parent["slow"] == 3  # handlers that ran all the while, and finished in the parent alone


def test_connections_of_the_parent_stay(seen):
    """Those that came and went were the children's, so none of the parent's was made anew."""
    assert seen.parent["more connections"] == 0
    assert seen.parent["new connections"] == CHILDREN * CONNECTIONS


def test_copies_in_a_child_raise_and_end(seen):
    assert len(seen.children) == CHILDREN
    for child in seen.children:
        assert child["copies"] == ["ConnectionClosedError"] * 2 + ["JobLostError"] * 2
        assert child["keepers"] == 0
        assert child["ends"]["handle JobLostError"] == 3
        assert set(child["ends"]) <= {
            "echo ConnectionClosedError",
            "produce ConnectionClosedError",
            "handle JobLostError",
            "handle ConnectionClosedError",  # one whose delete was under way
        }


def test_children_work_on_connections_of_their_own(seen):
    for child in seen.children:
        assert child["own"] is True
        assert child["problems"] == []


def test_children_do_not_spin(seen):
    # Of the second that they idle: a hundred times what it takes. Eight that spin share two processors, 0.2 s for each.
    assert max(child["cpu"] for child in seen.children) < 0.03


def test_nothing_complains(seen):
    assert seen.errors == ""


@pytest.mark.timing
@pytest.mark.parametrize(("style", "scheme"), WAYS, ids=["-".join(way) for way in WAYS])
def test_killed_parent_its_reservations_go_back_though_its_children_live(request, own_server, connect, style, scheme):
    conn = connect(own_server.uri)
    with Program("orphans", style, *place(style, scheme, own_server, request)) as program:
        children = program.read()
        assert len(children) == CHILDREN
        assert conn.stats().current_jobs_reserved == 10
        program.process.send_signal(signal.SIGKILL)
        try:
            wait_until(lambda: conn.stats().current_jobs_ready == 10, 2)
            wait_until(lambda: conn.stats().current_connections == 1, 2)
            for child in children:
                os.kill(child, 0)  # it lives
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


class InFlight:
    """A run of `fork_in_flight`, behind a proxy that the test can stop."""

    def __init__(self, program: Program, proxy: FaultProxy) -> None:
        self.program, self.proxy = program, proxy

    def go_on(self) -> None:
        """Have it go on to its next stop."""
        assert self.program.read() == {}
        self.program.process.send_signal(signal.SIGUSR1)

    def end(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What the children said, and the parent."""
        assert self.program.read() == {}  # it has forked
        self.proxy.resume()
        self.proxy.accept()
        code, said, errors = self.program.end()
        assert (code, errors) == (0, "")
        parent: dict[str, Any] = {}
        for line in said:
            if line.pop("parent", False):
                parent |= line
        return [line for line in said if "copies" in line], parent


@pytest.fixture(params=["tcp", "tls"])
def fork_in(request: pytest.FixtureRequest, own_server: Beanstalkd) -> Iterator[Callable[[str], InFlight]]:
    uri, ca = place("gevent", request.param, own_server, request)
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(("127.0.0.1", int(uri.rpartition(":")[2]))))

        def start(what: str) -> InFlight:
            at = proxy.uri.replace("beanstalk://127.0.0.1", "tls://localhost") if ca else proxy.uri
            return InFlight(stack.enter_context(Program("fork_in_flight", what, at, ca)), proxy)

        yield start


def test_fork_while_the_parent_dials_leaves_it_its_answers(fork_in):
    running = fork_in("dial")
    running.proxy.stall()
    wait_until(lambda: running.proxy.connections == 4)
    running.go_on()
    children, parent = running.end()
    assert parent["own"] == "done"
    assert parent["connect"] < 3  # a dial whose answer went to a child ends after 5
    assert [child["own"] for child in children] == ["done"] * 4


@pytest.mark.parametrize("what", ["reply", "connection"])
def test_put_under_way_at_a_fork_is_done_once_and_by_the_parent(fork_in, connect, own_server, what):
    running = fork_in(what)
    if what == "connection":
        running.proxy.refuse()
        running.go_on()
    else:
        wait_until(lambda: running.proxy.open_connections == 4)
        assert running.program.read() == {}
        running.proxy.stall()
        running.program.process.send_signal(signal.SIGUSR1)
    running.go_on()
    children, parent = running.end()
    assert parent["puts"] == ["done"] * 8
    assert [child["own"] for child in children] == ["done"] * 4
    assert [child["copies"] for child in children] == [["ConnectionClosedError"] * 8] * 4
    assert max(child["stop"] for child in children) < 5
    assert connect(own_server.uri).stats_tube("once").total_jobs == 8


# -- hooks of other libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("does", ["sleep", "lock", "put", "reserve"])
@pytest.mark.parametrize("registered", ["first", "last"])
def test_hooks_that_let_the_hub_run_harm_neither_parent_nor_child(own_server, registered, does):
    """At each of the three times of a fork, before or after our own."""
    *children, parent = run("fork_hooks", registered, does, own_server.uri, FORKS)
    assert parent["problems"] == []
    assert parent["stored"] == parent["acknowledged"] == parent["handled"]
    assert parent["made"] == FORKS * CONNECTIONS_WITH_HOOKS  # the children's, and none of the parent's anew
    assert len(children) == FORKS
    for child in children:
        assert child["problems"] == []
        assert child["called"] == ["before", "child"]


# -- how a child ends --------------------------------------------------------------------------------------------

ENDS = ["_exit", "exit", "late-exit", "return", "late-return", "raise"]
FROM = ["handler", "beside", "conn", "producer", "connect-hook", "error-hook", "handling-hook", "given-up-hook"]
ENDINGS = [("gevent", where, ending) for where in FROM for ending in ENDS] + [
    (way, where, ending)
    for way, where in [("bare", "handler"), ("patched", "handler"), ("multiprocessing", "handler"), ("pty", "beside")]
    for ending in ("late-exit", "return", "raise")
]


@pytest.mark.parametrize(("way", "where", "ending"), ENDINGS, ids=["-".join(each) for each in ENDINGS])
def test_child_forked_within_gstalk_ends_as_in_plain_gevent(own_server, way, where, ending):
    with Program("fork_endings", way, where, ending, own_server.uri, seconds=15) as program:
        code, said, errors = program.end()
    assert code == 0
    parent = [(what, value) for who, what, value in said if who == "parent"]
    in_child = {what: value for who, what, value in said if who == "child"}
    plain = 3 if ending.endswith("exit") else 1 if (way, ending) == ("multiprocessing", "raise") else 0
    puts = where in ("conn", "producer")
    expected = [("status", plain), ("stored", 6), ("left", [6, 0, 0] if puts else [0, 0, 0])]
    assert [each for each in parent if each[0] != "ids"] == expected  # and nothing went wrong there
    assert in_child.pop("works", ()) is None
    falls_off = plain == 0
    if where == "handler" and way != "multiprocessing":
        assert in_child.pop("job") == "JobLostError"
        if ending == "raise":
            assert in_child.pop("error") == ['ValueError("the child\'s own")', "its handler failed in a forked child"]
    if puts and falls_off and ending != "raise":
        assert in_child.pop("goes on") is None
        assert in_child.pop("failed") == "PutManyError"
    if falls_off and way != "multiprocessing":
        assert in_child.pop("main goes on") is None
    assert in_child == {}  # no handler ran there, no other error was told
    if ending != "raise" and way != "pty":
        assert errors == ""


# -- moments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "children"),
    [
        ("no_descriptor_left", [{"child": "ConnectionClosedError"}, {"child": "works"}] * 2),
        ("fork_fails", [{"fork": "BlockingIOError"}] * 10),
        (
            "child_of_a_child",
            [
                {"child": "ConnectionClosedError"},
                {"grandchild": "ConnectionClosedError"},
                {"child": "works"},
                {"child": "works"},
            ]
            * 5,
        ),
        (
            "in_a_thread",
            [{"child": ["ConnectionClosedError", "JobLostError", "JobLostError"]}, {"child": "works"}] * 10,
        ),
        ("by_subprocess", []),
    ],
)
def test_fork_under_load_leaves_one_writer_for_each_connection(own_server, scenario, children):
    *others, parent = run("fork_moments", scenario, own_server.uri)
    assert others == children
    assert parent["problems"] == []
    assert parent["stored"] == parent["acknowledged"] > 0


def test_fork_during_a_look_up_leaves_nobody_waiting_for_a_thread_that_is_gone(own_server):
    assert run("fork_moments", "look_up", own_server.uri) == [
        {"child": ["ConnectError", True]},
        {"child": "works"},
        {"problems": [], "parent": ["ConnectError"]},
    ]


def test_fork_while_a_waiting_reserve_is_called_back_leaves_it_to_the_parent(own_server):
    assert run("fork_moments", "redial", own_server.uri) == [{"problems": []}]


def test_fork_during_stops_ends_in_both_processes(own_server):
    assert run("fork_moments", "stop", own_server.uri) == [{"problems": [], "stored": 400, "reserved": 0}]


def test_fork_hook_of_ours_that_raises_keeps_no_other_from_running(own_server):
    with Program("fork_moments", "broken_hook", own_server.uri) as program:
        code, said, errors = program.end()
    assert code == 0
    *children, parent = said
    assert children == [{"child": "ConnectionClosedError"}, {"child": "works"}]
    assert parent["problems"] == []
    assert parent["stored"] == parent["acknowledged"]
    assert re.match("Exception ignored in.*<function _after_in_child", errors)  # Python 3.14 has two words more
    assert errors.count("ValueError: this one can't let go") == 1
