"""The same tests in four patch modes, each in a process of its own, and a hub that nobody holds for long.

How what gstalk does is told from what the tests do themselves is said in `programs/patched_tests.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.programs.running import Program

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timing, pytest.mark.limit(120)]

ROOMS = """
    connect conn conn_put conn_put_many conn_replies conn_close calls recall reserving tls unix
    producer consumer consumer_handlers consumer_stop asking crew
""".split()
FILES = [f"tests/io/test_{name}.py" for name in ROOMS]
# Of each file what waits, in all the ways there are: DNS, connecting, TLS, replies, room, reserves, pools and handlers.
SELECTED = [
    "test_dial_unknown_name",
    "test_dial_server_that_accepts_but_is_silent",
    "test_put_returns_id",
    "test_many_greenlets",
    "test_put_many_holds_no_more",
    "test_silent_server",
    "test_stalled_server",
    "test_connection_cut",
    "test_close_waits",
    "test_dropped_conn",
    "test_call_in_the_hub",
    "test_reserve_waits_until",
    "test_reserve_called_back",
    "test_reserve_interrupted_a_later_job",
    "test_first_in_line",
    "test_tls_producers_and_workers",
    "test_tls_with_the_ca",
    "test_tls_by_default",
    "test_tls_handshake_that_is_never_answered",
    "test_tls_many_greenlets",
    "test_tls_large_bodies",
    "test_tls_waiting_reserve",
    "test_tls_put_beside",
    "test_tls_interrupted_put",
    "test_tls_producer_and_consumer",
    "test_unix_socket",
    "test_ipv4_and_names",
    "test_ipv6_connects",
    "test_name_whose_look_up_hangs",
    "test_put_many_greenlets_over_two_servers",
    "test_put_under_load_while_a_server_is_killed",
    "test_put_after_a_restart",
    "test_put_waiting_in_an_outage",
    "test_stop_lets_puts_under_way_finish",
    "test_receive_uses_multiply",
    "test_handler_gets_every_job",
    "test_handler_that_raises",
    "test_time_limit",
    "test_several_servers",
    "test_stop_idle",
    "test_stop_lets_handlers_finish",
    "test_stop_after_its_timeout",
    "test_receive_interrupted_is_a_stop",
]
FEWEST = 80  # of these must have run, lest a renamed test go missing unseen


def run_tests(mode: str, *args: str) -> tuple[dict[str, Any], str]:
    """What the ticker saw, and what pytest said."""
    with Program("patched_tests", mode, *args, seconds=110) as program:
        output, errors = program.process.communicate(timeout=110)
    report, _, last = output.rstrip().rpartition("\n")
    return json.loads(last), report + errors


@pytest.mark.parametrize("mode", ["unpatched", "before", "after", "no-thread"])
def test_what_touches_sockets_works_and_never_holds_the_hub(mode, figures):
    seen, report = run_tests(mode, *FILES, "-k", " or ".join(SELECTED))
    figures |= seen
    assert (seen["code"], seen["holds"]) == (0, {}), report
    assert seen["passed"] >= FEWEST
    assert seen["ticks"] > 500


@pytest.mark.parametrize("mode", ["sleeps", "computes"])
def test_hub_that_is_held_is_noticed(mode):
    seen, report = run_tests(mode, "tests/io/test_unix.py", "-k", "test_ipv4_and_names_connect")
    assert seen["code"] == 0, report
    assert [place.partition(":")[0] for place in seen["holds"]] == ["gstalk/connection/transport.py"]
